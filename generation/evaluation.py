"""How near sounds are to each other, and how new and how good new pieces are.

In:  signals; new pieces, the training pieces, and those held out.
Out: distances in dB.

    distance = measure_mel_distance(recorded, generated, sample_rate=22050)
    item = Evaluator(sound_generator, pieces, spectrograms_path, min_max_values).compare(item)
"""

import librosa
import numpy as np

from preprocess import LogSpectrogramExtractor
from support import dataset
from support.command_line import show_progress

N_MELS = 80  # bands
MEL_FRAME_SIZE = 1024  # samples
MEL_HOP_LENGTH = 256  # samples
MEL_TOP_DB = 80.0  # dB under the reference's peak, the floor of both
POOLED_FRAMES = 8  # that a mel statistic is taken over
N_NEAR = 10  # training pieces nearest in latent, whose mel distance is measured
MAX_COMPARED = 200  # training and held-out pieces, at most, that new ones are compared with
TYPICAL_DISTANCES = (
    "typical latent distance between training pieces",
    "typical mel distance between training pieces, dB",
)


def measure_spectral_convergence(amplitude, signal, frame_size, hop_length):
    """20 log10(||S - |STFT(y)||| / ||S||) in dB, lower is better; -inf for silence kept silent.

    Args:
        amplitude: float32 (n_channels, frame_size / 2 + 1, n_frames).
        signal: float32 (n_samples,) or (n_channels, n_samples).
    """
    stft = librosa.stft(np.atleast_2d(signal), n_fft=frame_size, hop_length=hop_length)
    error = np.linalg.norm(amplitude - np.abs(stft))
    if error == 0:
        return -np.inf
    return float(20 * np.log10(error / max(np.linalg.norm(amplitude), np.finfo(np.float32).tiny)))


def measure_mel_distance(reference, signal, sample_rate, pooled_frames=1):
    """Mean absolute difference in dB of two signals' log mel spectrograms.

    Both are float32 (n_samples,) or (n_channels, n_samples), of one length; the floor of both
    lies MEL_TOP_DB under the reference's peak.

    Args:
        pooled_frames: whose power is averaged first, so that the scatter of noise counts less.
    """
    reference_mel, mel = (
        librosa.power_to_db(
            pool_frames(
                librosa.feature.melspectrogram(
                    y=np.atleast_2d(y),
                    sr=sample_rate,
                    n_fft=MEL_FRAME_SIZE,
                    hop_length=MEL_HOP_LENGTH,
                    n_mels=N_MELS,
                ),
                pooled_frames,
            ),
            top_db=None,
        )
        for y in (reference, signal)
    )
    floor = reference_mel.max() - MEL_TOP_DB
    return float(np.abs(np.maximum(reference_mel, floor) - np.maximum(mel, floor)).mean())


def pool_frames(mel, count):
    """The means of each `count` frames, (..., n_frames / count); fewer at the end."""
    starts = np.arange(0, mel.shape[-1], count)
    widths = np.diff([*starts, mel.shape[-1]])
    return np.add.reduceat(mel, starts, axis=-1) / widths


class Evaluator:
    """Tells how new and how good new pieces are, beside training pieces and held-out ones.

    Args:
        sound_generator: the SoundGenerator that makes them.
        pieces: the TrainingPieces of its model.
        spectrograms_path: the folder of their spectrograms, and others that were held out.
        min_max_values: {key: {"min": dB, "max": dB}} of both.
        held_out_tracks: the audio paths of the latter, or None for all others.
    Raises:
        UserError: none of the training pieces' features exist.
    """

    def __init__(
        self, sound_generator, pieces, spectrograms_path, min_max_values, held_out_tracks=None
    ):
        self.sound_generator = sound_generator
        self.spectrograms_path = spectrograms_path
        self.min_max_values = min_max_values
        self.mels = []  # of the new pieces so far
        self._mel_bands = librosa.filters.mel(
            sr=sound_generator.sample_rate,
            n_fft=sound_generator.frame_size,
            n_mels=min(N_MELS, sound_generator.frame_size // 4),
        )
        keys = [key for key in dataset.list_keys(spectrograms_path) if key in min_max_values]
        self.pieces = pieces.take_keys({*keys})
        if held_out_tracks is None:
            held_out_tracks = {*map(dataset.get_track, {*keys} - {*pieces.keys})}
        self.training_keys = choose_evenly(self.pieces.keys)
        self.held_out_keys = choose_evenly(
            [key for key in keys if dataset.get_track(key) in held_out_tracks]
        )
        self.typical_distances = self._measure_typical_distances()

    def compare(self, item):
        """The Item with its distances from the nearest training piece, beside the typical ones."""
        nearest = []
        windows = self.sound_generator.cut_windows(item.sounds["new"])
        pairs = zip(item.latents, windows, strict=True)
        for latent, window in show_progress(pairs, len(item.latents), "comparing windows"):
            self.mels.append(self._extract_mel(window))
            nearest.append(self._find_nearest(latent, self.mels[-1]))
        key, _, mel_distance = min(nearest, key=lambda entry: entry[2])
        figures = {
            **item.figures,
            "nearest training piece": key,
            "latent distance to the nearest": min(entry[1] for entry in nearest),
            "mel distance to the nearest, dB": mel_distance,
            **self.typical_distances,
        }
        return item._replace(figures=figures)

    def measure_sets(self):
        """Frechet distances in dB from the held-out pieces: of new pieces, and of three others.

        Returns:
            {"new pieces", "training pieces" (the floor), "mean spectrogram" and "noise" (the
            ceilings): dB}; empty if no piece is held out.
        """
        if not self.held_out_keys:
            return {}
        held_out, training = map(self._load_mels, (self.held_out_keys, self.training_keys))
        log_spectrograms = map(self._load_log_spectrogram, self.training_keys)
        mean = self._extract_mel(sum(log_spectrograms) / len(self.training_keys))
        generator = self.sound_generator
        rng = np.random.default_rng(0)
        signal = rng.standard_normal(generator.n_samples).astype(np.float32)
        extractor = LogSpectrogramExtractor(generator.frame_size, generator.hop_length)
        noise = self._extract_mel(extractor.extract(signal))
        noise += mean.mean() - noise.mean()  # as loud as the music, in decibels
        sets = {
            "new pieces": self.mels,
            "training pieces": training,
            "mean spectrogram": [mean],
            "noise": [noise],
        }
        return {name: measure_frechet_distance(held_out, mels) for name, mels in sets.items()}

    def _load_log_spectrogram(self, key):
        image = dataset.load_spectrogram(self.spectrograms_path, key)
        return self.sound_generator.restore_log_spectrogram(image, self.min_max_values[key])

    def _load_mel(self, key):
        return self._extract_mel(self._load_log_spectrogram(key))

    def _load_mels(self, keys):
        return [self._load_mel(key) for key in show_progress(keys, len(keys), "comparing sets")]

    def _extract_mel(self, log_spectrogram):
        """Mel bands in dB of a log spectrogram, float32 (N_MELS, n_frames), channels averaged."""
        power = np.square(librosa.db_to_amplitude(log_spectrogram))
        power = power.reshape(*power.shape[:2], -1).mean(axis=2)
        mel = self._mel_bands[:, :-1] @ power  # the Nyquist row left out
        return librosa.power_to_db(mel, top_db=self.sound_generator.top_db)

    def _find_nearest(self, latent, mel, track=None):
        """(key, latent distance, mel distance in dB) of the nearest training piece.

        The mel distance is the smallest among the N_NEAR nearest latents; pieces of `track` are
        left out.
        """
        distances = np.linalg.norm(self.pieces.latents - latent, axis=1)
        nearest = [
            index
            for index in distances.argsort()
            if dataset.get_track(self.pieces.keys[index]) != track
        ][:N_NEAR]
        keys = [self.pieces.keys[index] for index in nearest]
        mel_distances = [float(np.abs(self._load_mel(key) - mel).mean()) for key in keys]
        best = int(np.argmin(mel_distances))
        return keys[best], float(distances[nearest[0]]), mel_distances[best]

    def _measure_typical_distances(self):
        """{figure: median distance of training pieces to the nearest of other tracks}, if any."""
        if len({*map(dataset.get_track, self.pieces.keys)}) < 2:
            return {}
        nearest = []
        for key in show_progress(self.training_keys, len(self.training_keys), "comparing"):
            latent = self.pieces.latents[self.pieces.keys.index(key)]
            distances = self._find_nearest(latent, self._load_mel(key), dataset.get_track(key))
            nearest.append(distances[1:])
        return dict(zip(TYPICAL_DISTANCES, np.median(nearest, axis=0).tolist(), strict=True))


def choose_evenly(keys):
    """At most MAX_COMPARED of the keys, evenly spaced."""
    count = min(MAX_COMPARED, len(keys))
    return [keys[index] for index in np.linspace(0, len(keys) - 1, count).astype(int)]


def measure_frechet_distance(mels, others):
    """The Frechet distance of two sets' mel statistics, dB.

    Each set is a Gaussian over the means and deviations of its mel bands in POOLED_FRAMES frames.
    """
    statistics = []
    for chosen in (mels, others):
        vectors = []
        for mel in chosen:
            n_pools = max(1, mel.shape[1] // POOLED_FRAMES)
            pools = np.array_split(mel, n_pools, axis=1)
            vectors += [np.concatenate([p.mean(axis=1), p.std(axis=1)]) for p in pools]
        vectors = np.array(vectors, np.float64)
        covariance = np.cov(vectors.T) if len(vectors) > 1 else np.zeros((vectors.shape[1],) * 2)
        statistics.append((vectors.mean(axis=0), covariance))
    (mean, covariance), (other_mean, other) = statistics
    square = np.square(mean - other_mean).sum()
    # The trace of a product's square root is the sum of its eigenvalues' roots.
    roots = np.sqrt(np.linalg.eigvals(covariance @ other).real.clip(0))
    square += np.trace(covariance + other) - 2 * roots.sum()
    return float(np.sqrt(max(square, 0)))
