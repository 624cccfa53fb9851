"""Spectrograms through the autoencoder and back into sound.

In:  normalised log spectrograms (n_bins, n_frames, n_channels) and their decibel ranges; latents;
     or recordings of any length.
Out: float32 signals, (n_samples,) or (2, n_samples); used by generate.py.

    generator = SoundGenerator(autoencoder, 256, frame_size=1024, n_samples=65488)
    signals, latents = generator.generate(spectrograms, min_max_values)
"""

import librosa
import numpy as np

from preprocess import FRAME_SIZE, SAMPLE_RATE, TOP_DB, LogSpectrogramExtractor, MinMaxNormaliser
from support.command_line import show_progress
from support.dataset import add_channel_axis
from support.griffin_lim import SEED, GriffinLim
from support.spectrograms import SILENCE_DB, resize, to_amplitude, to_image, to_log_spectrogram

DECODE_BATCH_SIZE = 32  # windows of a long sound, decoded at a time


class SoundGenerator:
    """Bridges an autoencoder's spectrograms and sound.

    Long sound is made of windows, each as long as a piece, that overlap by half.

    Args:
        autoencoder: an Autoencoder, or None if only convert_spectrograms_to_audio is used.
        hop_length: samples, at most half of frame_size.
        frame_size: samples; spectrograms have frame_size / 2 rows, the Nyquist row left out.
        n_samples: length of a piece; None makes it hop_length * (n_frames - 1).
        sample_rate: Hz.
        top_db: dB kept below the peak of a window.
        seed: of the phases that no slope implies, and of the texture.
        texture: the Texture that the autoencoder's spectrograms lack, or None.
    """

    def __init__(
        self,
        autoencoder,
        hop_length,
        *,
        frame_size=FRAME_SIZE,
        n_samples=None,
        sample_rate=SAMPLE_RATE,
        top_db=TOP_DB,
        seed=SEED,
        texture=None,
    ):
        self.autoencoder = autoencoder
        self.hop_length = hop_length
        self.frame_size = frame_size
        self.n_samples = n_samples
        self.sample_rate = sample_rate
        self.top_db = top_db
        self.seed = seed
        self.texture = texture
        self._extractor = LogSpectrogramExtractor(frame_size, hop_length, top_db=None)
        self._griffin_lim = GriffinLim(frame_size, hop_length, seed=seed)
        self._min_max_normaliser = MinMaxNormaliser(0, 1)

    @property
    def n_frames(self):
        """Frames of a piece, and of a window."""
        return 1 + self.n_samples // self.hop_length

    @property
    def window_hop(self):
        """Frames from one window to the next."""
        return max(1, self.n_frames // 2)

    def generate(self, spectrograms, min_max_values):
        """Reconstruct spectrograms and turn them into sound.

        Args:
            spectrograms: float32, in [0, 1], (height, width) or (height, width, n_channels) each;
                they are resized to the autoencoder's size.
            min_max_values: {"min": dB, "max": dB} of each.
        Returns:
            (signals, latents): a list of float32 signals, and float32 (n, latent_space_dim).
        """
        generated_spectrograms, latents = self.autoencoder.reconstruct(
            self.fit_images(spectrograms)
        )
        signals = self.convert_spectrograms_to_audio(
            generated_spectrograms, min_max_values, is_generated=True
        )
        return signals, latents

    def convert_spectrograms_to_audio(self, spectrograms, min_max_values, *, is_generated=False):
        """The signals of normalised log spectrograms of any size; see generate().

        Args:
            is_generated: whether they came out of the autoencoder, and lack texture.
        """
        log_spectrograms = map(self.restore_log_spectrogram, spectrograms, min_max_values)
        if is_generated:
            log_spectrograms = map(self.add_texture, log_spectrograms)
        return [*self.invert_all(log_spectrograms, self.n_samples)]

    def add_texture(self, log_spectrogram):
        """A generated log spectrogram of any length, in dB, with what it lacks; see Texture."""
        if self.texture is None:
            return log_spectrogram
        return self.texture.apply(log_spectrogram, self._extractor, self.seed)

    def fit_images(self, spectrograms):
        """Spectrograms at the autoencoder's size, float32 (n, height, width, n_channels)."""
        shape = self.autoencoder.input_shape[:2]
        return np.stack([resize(add_channel_axis(image), shape) for image in spectrograms])

    def restore_log_spectrogram(self, spectrogram, min_max):
        """Undo resizing and normalisation.

        Returns:
            float32 (n_bins, n_frames, n_channels), dB; SILENCE_DB where the spectrogram is at its
            floor: what was below is not known, and the floor itself would be heard as hiss.
        """
        image = add_channel_axis(np.asarray(spectrogram, np.float32))
        n_frames = self.n_frames if self.n_samples else image.shape[1]
        image = resize(image, (self.frame_size // 2, n_frames))
        log_spectrogram = to_log_spectrogram(image, min_max, self._min_max_normaliser)
        return np.where(image <= 0, np.float32(SILENCE_DB), log_spectrogram)

    def invert(self, log_spectrogram, n_samples=None):
        """The signal of one log spectrogram of any length, as decode() yields them."""
        return self._griffin_lim.invert(to_amplitude(log_spectrogram), n_samples)

    def invert_all(self, log_spectrograms, n_samples=None):
        """Yield the signals of log spectrograms of one length, one per core at a time."""
        return self._griffin_lim.invert_all(map(to_amplitude, log_spectrograms), n_samples)

    def decode(self, latents, min_max_values):
        """Yield the log spectrogram of each latent, float32 (n_bins, n_frames, n_channels), dB.

        They have no texture yet: it is added to what is joined of them.
        """
        for start in range(0, len(latents), DECODE_BATCH_SIZE):
            batch = slice(start, start + DECODE_BATCH_SIZE)
            images = self.autoencoder.decode(latents[batch])
            yield from map(self.restore_log_spectrogram, images, min_max_values[batch])

    def count_windows(self, n_samples):
        """How many windows cover a signal."""
        n_frames = 1 + n_samples // self.hop_length
        return 1 + max(0, -(-(n_frames - self.n_frames) // self.window_hop))

    def join(self, windows, n_windows, n_samples):
        """One sound of windows that overlap by half.

        Args:
            windows: n_windows log spectrograms, as decode() yields them.
        Returns:
            (signal, log spectrogram in dB).
        """
        n_frames = 1 + n_samples // self.hop_length
        log_spectrogram = join_windows(windows, n_windows, self.window_hop, n_frames)
        log_spectrogram = self.add_texture(log_spectrogram)
        return self.invert(log_spectrogram, n_samples), log_spectrogram

    def reconstruct(self, signal):
        """A recording of any length through the autoencoder.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
        Returns:
            (signal, log spectrogram in dB, that of the recording, the mean squared error of the
            windows' images).
        """
        log_spectrogram = add_channel_axis(self._extractor.extract(signal))
        n_windows, errors = self.count_windows(signal.shape[-1]), []

        def reconstruct_windows():
            windows = self.cut_windows(log_spectrogram, n_windows)
            for window in show_progress(windows, n_windows, "windows"):
                shape = self.autoencoder.input_shape[:2]
                image, min_max = to_image(
                    window, self._min_max_normaliser, top_db=self.top_db, shape=shape
                )
                (reconstructed,), _ = self.autoencoder.reconstruct(image[np.newaxis])
                errors.append(np.square(reconstructed - image).mean())
                yield self.restore_log_spectrogram(reconstructed, min_max)

        sound, reconstructed = self.join(reconstruct_windows(), n_windows, signal.shape[-1])
        return sound, reconstructed, log_spectrogram, float(np.mean(errors))

    def cut_windows(self, log_spectrogram, n_windows):
        """The windows of one log spectrogram, the last one padded with silence; see join()."""
        n_frames = (n_windows - 1) * self.window_hop + self.n_frames
        n_missing = max(0, n_frames - log_spectrogram.shape[1])
        padded = np.pad(
            log_spectrogram, [(0, 0), (0, n_missing), (0, 0)], constant_values=SILENCE_DB
        )
        starts = range(0, n_windows * self.window_hop, self.window_hop)
        return [padded[:, start : start + self.n_frames] for start in starts]


def join_windows(windows, n_windows, hop, n_frames):
    """Cross-fade overlapping log spectrograms into one, in power, without a seam.

    Args:
        windows: n_windows of float32 (n_bins, n_window_frames, n_channels), dB, each `hop` frames
            after the one before; hop <= n_window_frames / 2, so every frame but the first and
            last few is a mixture of at least two.
        n_frames: of the result.
    Returns:
        float32 (n_bins, n_frames, n_channels), dB, SILENCE_DB at least.
    """
    total = None
    for index, window in enumerate(windows):
        n_bins, n_window_frames, n_channels = window.shape
        if total is None:
            length = max((n_windows - 1) * hop + n_window_frames, n_frames)
            total = np.zeros((n_bins, length, n_channels), np.float32)
            weights = np.full(length, np.finfo(np.float32).tiny, np.float32)
            fade = 1 - np.abs(np.linspace(-1, 1, n_window_frames + 2, dtype=np.float32)[1:-1])
        place = slice(index * hop, index * hop + n_window_frames)
        total[:, place] += fade[:, np.newaxis] * np.square(librosa.db_to_amplitude(window))
        weights[place] += fade
    total /= weights[:, np.newaxis]
    return librosa.power_to_db(total[:, :n_frames], amin=10 ** (SILENCE_DB / 10), top_db=None)
