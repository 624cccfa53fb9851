"""Spectrograms through the autoencoder and back into sound.

In:  normalised log spectrograms (n_bins, n_frames, n_channels) and their decibel ranges.
Out: float32 signals, (n_samples,) or (2, n_samples); used by generate.py.

    generator = SoundGenerator(autoencoder, 256, frame_size=1024, n_samples=65488)
"""

import numpy as np

from preprocess import FRAME_SIZE, MinMaxNormaliser, check_hop_length, resize_spectrogram

N_ITER = 64  # Griffin-Lim iterations
SILENCE_DB = -99.9  # amplitude_to_db puts digital silence at -100 dB
SEED = 0

N_MELS = 80  # the mel distance's bands, frame and floor
MEL_FRAME_SIZE = 1024  # samples
MEL_HOP_LENGTH = 256  # samples
MEL_TOP_DB = 80.0


class SoundGenerator:
    """Bridges an autoencoder's spectrograms and sound.

    Args:
        autoencoder: an Autoencoder, or None where only convert_spectrograms_to_audio is used.
        hop_length: samples.
        frame_size: samples; spectrograms have frame_size / 2 rows, the Nyquist row left out.
        n_samples: length of a signal; None makes it hop_length * (n_frames - 1).
        n_iter: Griffin-Lim iterations.
        seed: of the phase that Griffin-Lim starts from.
    """

    def __init__(
        self, autoencoder, hop_length, *, frame_size=FRAME_SIZE, n_samples=None, n_iter=N_ITER,
        seed=SEED,
    ):  # fmt: skip
        self.autoencoder = autoencoder
        self.hop_length = check_hop_length(hop_length, frame_size)
        self.frame_size = frame_size
        self.n_samples = n_samples
        self.n_iter = n_iter
        self.seed = seed
        self._min_max_normaliser = MinMaxNormaliser(0, 1)

    def generate(self, spectrograms, min_max_values):
        """Reconstruct spectrograms and turn them into sound.

        Args:
            spectrograms: float32 images of the autoencoder's size, in [0, 1], (height, width)
                or (height, width, n_channels) each.
            min_max_values: {"min": dB, "max": dB} each.
        Returns:
            (signals, latents): a list of float32 signals, and float32 (n, latent_space_dim).
        """
        images = np.stack([add_channel_axis(spectrogram) for spectrogram in spectrograms])
        reconstructed, latents = self.autoencoder.reconstruct(images)
        return self.convert_spectrograms_to_audio(reconstructed, min_max_values), latents

    def convert_spectrograms_to_audio(self, spectrograms, min_max_values):
        """The signals of normalised log spectrograms of any size; see generate()."""
        return [
            self.invert(self.restore_amplitude(spectrogram, min_max))
            for spectrogram, min_max in zip(spectrograms, min_max_values, strict=True)
        ]

    def restore_amplitude(self, spectrogram, min_max):
        """Undo resizing, normalisation and decibels.

        Args:
            spectrogram: float32 (height, width) or (height, width, n_channels), in [0, 1].
            min_max: {"min": dB, "max": dB}.
        Returns:
            float32 amplitude (n_channels, frame_size / 2 + 1, n_frames), Nyquist row zero.
        """
        import librosa

        image = add_channel_axis(np.asarray(spectrogram, dtype=np.float32))
        image = resize_spectrogram(image, self._get_native_shape(image))
        log_spectrogram = self._min_max_normaliser.denormalise(
            image, min_max["min"], min_max["max"]
        )
        amplitude = librosa.db_to_amplitude(log_spectrogram)
        amplitude[log_spectrogram <= SILENCE_DB] = 0
        amplitude = np.pad(amplitude, [(0, 1), (0, 0), (0, 0)])
        return np.moveaxis(amplitude, -1, 0).astype(np.float32)

    def invert(self, amplitude):
        """Griffin-Lim (Griffin and Lim 1984, with the momentum of Perraudin et al. 2013).

        Args:
            amplitude: float32 (n_channels, frame_size / 2 + 1, n_frames), >= 0.
        Returns:
            float32 (n_samples,) for one channel, else (n_channels, n_samples).
        """
        import librosa

        n_samples = self.n_samples or self.hop_length * max(1, amplitude.shape[-1] - 1)
        if not amplitude.any():
            signal = np.zeros((len(amplitude), n_samples), np.float32)
        else:
            signal = librosa.griffinlim(
                amplitude, n_iter=self.n_iter, hop_length=self.hop_length, n_fft=self.frame_size,
                length=n_samples, random_state=self.seed,
            ).astype(np.float32)  # fmt: skip
        return signal[0] if len(signal) == 1 else signal

    def _get_native_shape(self, image):
        n_frames = image.shape[1]
        if self.n_samples:
            n_frames = 1 + self.n_samples // self.hop_length
        return self.frame_size // 2, n_frames


def add_channel_axis(spectrogram):
    """(height, width) becomes (height, width, 1); three axes stay."""
    return spectrogram[..., np.newaxis] if spectrogram.ndim == 2 else spectrogram


def measure_spectral_convergence(amplitude, signal, frame_size, hop_length):
    """20 log10(||S - |STFT(y)||| / ||S||) in dB, lower is better; -inf for silence kept silent.

    Args:
        amplitude: float32 (n_channels, frame_size / 2 + 1, n_frames).
        signal: float32 (n_samples,) or (n_channels, n_samples).
    """
    import librosa

    signal = np.atleast_2d(signal)
    again = np.abs(librosa.stft(signal, n_fft=frame_size, hop_length=hop_length))
    error = np.linalg.norm(amplitude - again)
    if error == 0:
        return -np.inf
    return float(20 * np.log10(error / max(np.linalg.norm(amplitude), np.finfo(np.float32).tiny)))


def measure_mel_distance(reference, signal, sample_rate):
    """Mean absolute difference in dB of two signals' log mel spectrograms.

    Both are float32 (n_samples,) or (n_channels, n_samples), of one length; the floor of both
    lies MEL_TOP_DB under the reference's peak.
    """
    import librosa

    def extract_mel(y):
        power = librosa.feature.melspectrogram(
            y=np.atleast_2d(y), sr=sample_rate, n_fft=MEL_FRAME_SIZE, hop_length=MEL_HOP_LENGTH,
            n_mels=N_MELS,
        )  # fmt: skip
        return librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)

    reference_mel, mel = extract_mel(reference), extract_mel(signal)
    floor = reference_mel.max() - MEL_TOP_DB
    return float(np.abs(np.maximum(reference_mel, floor) - np.maximum(mel, floor)).mean())
