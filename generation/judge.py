"""How new and how good new pieces are.

In:  new pieces; the training pieces, and those held out.
Out: distances between latents, and mel distances in dB.

    item = Judge(studio, pieces, "saved_data").judge(item)
"""

import math
from pathlib import Path

import numpy as np

import preprocess
from support import dataset

N_MELS = 80  # bands that new pieces are compared in
POOLED_FRAMES = 8  # that a mel statistic is taken over
N_NEAR = 10  # training pieces nearest in latent, whose mel distance is measured
MAX_JUDGED = 200  # training and held-out pieces, at most, that new ones are compared with


class Judge:
    """Tells how new and how good new pieces are, beside training pieces and held-out ones.

    Args:
        studio: a Studio.
        pieces: the TrainingPieces.
        saved_data: the folder with their spectrograms, and others that were held out.
        held_tracks: the audio paths of those, or None for all others.
    """

    def __init__(self, studio, pieces, saved_data, held_tracks=None):
        self.studio = studio
        self.spectrograms_path = Path(saved_data) / dataset.SPECTROGRAMS_SAVE_DIR
        keys = dataset.list_keys(self.spectrograms_path)
        self.min_max_values = dataset.load_min_max_values(dataset.get_min_max_path(saved_data))
        if held_tracks is None:
            held_tracks = {*map(dataset.get_track, {*keys} - {*pieces.keys})}
        keys = [key for key in keys if key in self.min_max_values]
        known = {*keys}
        there = [index for index, key in enumerate(pieces.keys) if key in known]
        if not there:
            raise ValueError("none of them is there")
        self.pieces = pieces = pieces.take(there)
        self.held_keys = choose_evenly([k for k in keys if dataset.get_track(k) in held_tracks])
        self.training_keys = choose_evenly(pieces.keys)
        self.mels = []  # of the new pieces so far
        self.typical = self._measure_typical()

    def judge(self, item):
        """The Item with its distances from the nearest training piece, beside the typical ones."""
        latents = np.atleast_2d(item.figures["latents"])
        found = []
        windows = self.studio.cut_windows(item.log_spectrograms["new"], len(latents))
        for latent, window in zip(latents, windows, strict=True):
            self.mels.append(extract_mel(window, self.studio.settings))
            found.append(self._find_nearest(latent, self.mels[-1]))
        key, _, mel = min(found, key=lambda entry: entry[2])
        return item._replace(figures={
            **item.figures,
            "nearest training piece": key,
            "latent distance to the nearest": min(entry[1] for entry in found),
            "typical latent distance between training pieces": self.typical[0],
            "mel distance to the nearest, dB": mel,
            "typical mel distance between training pieces, dB": self.typical[1],
        })  # fmt: skip

    def measure_sets(self):
        """Frechet distances in dB from the held-out pieces: of new pieces, and of three others.

        Returns:
            {"new pieces", "training pieces" (the floor), "mean spectrogram" and "noise" (the
            ceilings): dB}; empty where no piece is held out.
        """
        if not self.held_keys:
            return {}
        held = [self._load_mel(key) for key in self.held_keys]
        training = [self._load_mel(key) for key in self.training_keys]
        logs = (self._load_log_spectrogram(key) for key in self.training_keys)
        mean = extract_mel(sum(logs) / len(self.training_keys), self.studio.settings)
        settings, n_samples = self.studio.settings, self.studio.generator.n_samples
        signal = np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
        extractor = preprocess.LogSpectrogramExtractor(settings.frame_size, settings.hop_length)
        noise = extract_mel(extractor.extract(signal), settings)
        noise += mean.mean() - noise.mean()  # as loud as the music, in decibels
        sets = {
            "new pieces": self.mels, "training pieces": training, "mean spectrogram": [mean],
            "noise": [noise],
        }  # fmt: skip
        return {name: measure_frechet_distance(held, mels) for name, mels in sets.items()}

    def _load_log_spectrogram(self, key):
        image = dataset.load_spectrogram(self.spectrograms_path, key)
        low, high = self.min_max_values[key]["min"], self.min_max_values[key]["max"]
        return preprocess.MinMaxNormaliser(0, 1).denormalise(image, low, high)

    def _load_mel(self, key):
        return extract_mel(self._load_log_spectrogram(key), self.studio.settings)

    def _find_nearest(self, latent, mel, track=None):
        """(key, latent distance, mel distance in dB) of the nearest training piece.

        The mel distance is the smallest among the N_NEAR nearest latents; pieces of `track` are
        left out.
        """
        distances = np.linalg.norm(self.pieces.latents - latent, axis=1)
        nearest = [
            index for index in distances.argsort()
            if dataset.get_track(self.pieces.keys[index]) != track
        ][:N_NEAR]  # fmt: skip
        keys = [self.pieces.keys[index] for index in nearest]
        mels = [float(np.abs(self._load_mel(key) - mel).mean()) for key in keys]
        best = int(np.argmin(mels))
        return keys[best], float(distances[nearest[0]]), mels[best]

    def _measure_typical(self):
        """The median distances of training pieces to the nearest of other tracks, if any."""
        found = []
        tracks = [dataset.get_track(key) for key in self.pieces.keys]
        for key in self.training_keys if len({*tracks}) > 1 else []:
            latent = self.pieces.latents[self.pieces.keys.index(key)]
            nearest = self._find_nearest(latent, self._load_mel(key), dataset.get_track(key))
            found.append(nearest[1:])
        return np.median(found, axis=0).tolist() if found else (math.nan, math.nan)


def choose_evenly(keys):
    """At most MAX_JUDGED of the keys, evenly spaced."""
    count = min(MAX_JUDGED, len(keys))
    return [keys[index] for index in np.linspace(0, len(keys) - 1, count).astype(int)]


def extract_mel(log_spectrogram, settings):
    """Mel bands in dB of a log spectrogram, float32 (N_MELS, n_frames), channels mixed."""
    import librosa

    power = np.square(librosa.db_to_amplitude(log_spectrogram))
    power = power.reshape(*power.shape[:2], -1).mean(axis=2)
    bands = librosa.filters.mel(
        sr=settings.sample_rate, n_fft=settings.frame_size, n_mels=min(N_MELS, len(power) // 2)
    )
    return librosa.power_to_db(bands[:, :-1] @ power, top_db=settings.top_db)


def measure_frechet_distance(mels, others):
    """The Frechet distance of two sets' mel statistics, dB.

    Each set is a Gaussian over the means and deviations of its mel bands in POOLED_FRAMES frames.
    """
    from scipy.linalg import sqrtm

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
    square += np.trace(covariance + other - 2 * sqrtm(covariance @ other).real)
    return float(np.sqrt(max(square, 0)))
