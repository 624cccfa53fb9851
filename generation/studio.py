"""Sound of any length from a model of short pieces.

In:  latents, or a signal.
Out: signals float32 (n_samples,) or (2, n_samples), and their log spectrograms in dB.

    signal, log_spectrogram = studio.join(studio.decode(latents, ranges), len(latents), n_samples)
"""

import numpy as np

import preprocess

DECODE_BATCH = 32  # windows decoded at a time
SILENT_DB = -100.0  # what preprocess.py gives digital silence


class Studio:
    """Turns latents and songs of any length into sound with one model.

    Args:
        generator: a SoundGenerator with an autoencoder, for pieces of the settings' duration.
        settings: the features' Settings.
    """

    def __init__(self, generator, settings):
        self.generator = generator
        self.settings = settings
        n_samples = generator.n_samples
        self.n_frames = 1 + n_samples // settings.hop_length  # of a window
        self.hop = max(1, self.n_frames // 2)  # frames from window to window
        self.sample_rate = settings.sample_rate

    def decode(self, latents, ranges):
        """Yield the log spectrogram, float32 (n_bins, n_frames, n_channels) in dB, of each."""
        for start in range(0, len(latents), DECODE_BATCH):
            images = self.generator.autoencoder.decode(latents[start : start + DECODE_BATCH])
            for image, (low, high) in zip(images, ranges[start:], strict=False):
                yield self.generator.restore_log_spectrogram(image, {"min": low, "max": high})

    def join(self, windows, n_windows, n_samples):
        """Cross-fade windows, each self.hop frames after the last, and invert them once.

        Returns:
            (signal, log spectrogram in dB).
        """
        n_frames = 1 + n_samples // self.settings.hop_length
        log_spectrogram = join_windows(windows, n_windows, self.hop, n_frames)
        amplitude = self.generator.convert_to_amplitude(log_spectrogram)
        return self.generator.invert(amplitude, n_samples), log_spectrogram

    def count_windows(self, n_samples):
        """How many windows cover a signal."""
        n_frames = 1 + n_samples // self.settings.hop_length
        return 1 + max(0, -(-(n_frames - self.n_frames) // self.hop))

    def cut_windows(self, log_spectrogram, n_windows):
        """The windows that join() made one log spectrogram of; the last one padded."""
        length = (n_windows - 1) * self.hop + self.n_frames
        n_missing = max(0, length - log_spectrogram.shape[1])
        padded = np.pad(log_spectrogram, [(0, 0), (0, n_missing), (0, 0)], mode="edge")
        return [padded[:, index * self.hop :][:, : self.n_frames] for index in range(n_windows)]

    def reconstruct(self, signal):
        """A signal of any length through the autoencoder.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
        Returns:
            (signal, log spectrogram in dB, that of the signal given, the mean squared error of
            the normalised windows).
        """
        extractor = preprocess.LogSpectrogramExtractor(
            self.settings.frame_size, self.settings.hop_length, top_db=None
        )
        log_spectrogram = extractor.extract(signal)
        log_spectrogram = log_spectrogram.reshape(*log_spectrogram.shape[:2], -1)
        n_windows = self.count_windows(signal.shape[-1])
        errors = []

        def reconstruct_windows():
            for index in range(n_windows):
                start = index * self.hop
                window = log_spectrogram[:, start : start + self.n_frames]
                n_missing = self.n_frames - window.shape[1]
                window = np.pad(window, [(0, 0), (0, n_missing), (0, 0)], mode="constant",
                    constant_values=SILENT_DB)  # fmt: skip
                window = np.maximum(window, window.max() - self.settings.top_db)
                image = preprocess.MinMaxNormaliser(0, 1).normalise(window)
                autoencoder = self.generator.autoencoder
                image = preprocess.resize_spectrogram(image, autoencoder.input_shape[:2])
                (again,), _ = autoencoder.reconstruct(image[np.newaxis])
                errors.append(np.square(again - image).mean())
                min_max = {"min": window.min(), "max": window.max()}
                yield self.generator.restore_log_spectrogram(again, min_max)

        sound, reconstructed = self.join(reconstruct_windows(), n_windows, signal.shape[-1])
        return sound, reconstructed, log_spectrogram, float(np.mean(errors))


def join_windows(windows, n_windows, hop, n_frames):
    """Cross-fade overlapping log spectrograms into one, in decibels, so that no seam is left.

    Args:
        windows: n_windows of float32 (n_bins, n_window_frames, n_channels), dB, each `hop` frames
            after the one before; hop <= n_window_frames / 2, so that every frame but the first
            and last few is a mixture of two or more.
        n_frames: of the result.
    Returns:
        float32 (n_bins, n_frames, n_channels), dB.
    """
    total = weights = None
    for index, window in enumerate(windows):
        n_bins, n_window_frames, n_channels = window.shape
        if total is None:
            length = (n_windows - 1) * hop + n_window_frames
            total = np.zeros((n_bins, max(length, n_frames), n_channels), np.float32)
            weights = np.full(total.shape[1], np.finfo(np.float32).tiny, np.float32)
            fade = 1 - np.abs(np.linspace(-1, 1, n_window_frames + 2, dtype=np.float32)[1:-1])
        place = slice(index * hop, index * hop + n_window_frames)
        total[:, place] += fade[:, np.newaxis] * window
        weights[place] += fade
    total /= weights[:, np.newaxis]
    return total[:, :n_frames]
