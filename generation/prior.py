"""New latents: a density over those of the training pieces, and over what follows them.

In:  model/latents.npz.
Out: latents float32 (n, latent_space_dim) and ranges float32 (n, 2) in dB.

    pieces = load_training_pieces("model")
    latents, ranges = Prior(pieces).walk(40, 1.0, np.random.default_rng(0))
"""

import difflib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support import dataset
from support.errors import UserError
from support.files import load_arrays

PRIOR_VARIANCE = 0.99  # share of the latents' variance that the prior models
PIECES_PER_COMPONENT = 4  # at least, of principal components
MAX_COMPONENTS = 512
SAME_LATENT = 1e-5  # of the largest number in any latent: more than float32 rounds
MORE_AUDIO = "preprocess more audio and train again"  # a remedy


class TrainingPieces(NamedTuple):
    """What model/latents.npz says of the pieces that the model learned from."""

    latents: np.ndarray  # float32 (n, latent_space_dim)
    ranges: np.ndarray  # float32 (n, 2), min and max in dB
    keys: list
    genres: np.ndarray  # str (n,), top folders
    bands: np.ndarray  # uint8 (n, n_steps, n_bands): see support/bands.py; 255 is their 1
    next_latents: np.ndarray  # float32 (n, latent_space_dim), of the windows half a piece later
    next_ranges: np.ndarray  # float32 (n, 2)
    has_next: np.ndarray  # bool (n,): not so for the last piece of a track

    def take(self, indices):
        """The pieces at some indices."""
        keys = [self.keys[index] for index in indices]
        arrays = {name: array[indices] for name, array in self._asdict().items() if name != "keys"}
        return TrainingPieces(**arrays, keys=keys)

    def take_genre(self, genre):
        """The pieces of one genre, or all if it is None; a UserError lists similar genres."""
        if genre is None:
            return self
        indices = np.flatnonzero(self.genres == genre)
        if not len(indices):
            genres = list_similar(genre, self.genres)
            raise UserError(f"no genre is called {genre!r}, but: {genres}")
        return self.take(indices)


def load_training_pieces(model_folder):
    """The TrainingPieces of a model folder.

    Raises:
        FileNotFoundError: latents.npz does not exist.
        UserError: it is damaged.
    """
    path = Path(model_folder) / "latents.npz"
    if not path.is_file():
        raise FileNotFoundError(f"no latents at {path}: run train.py again")
    try:
        arrays = load_arrays(path)
        with np.errstate(over="ignore"):  # what overflows is refused below
            ranges, next_ranges = (
                np.stack([arrays[f"{which}min"], arrays[f"{which}max"]], axis=1).astype(np.float32)
                for which in ("", "next_")
            )
            latents, next_latents = (
                arrays[name].astype(np.float32) for name in ("latent", "next_latent")
            )
        keys, genres, bands, has_next = (
            arrays[name] for name in ("key", "genre", "bands", "has_next")
        )
        pieces = TrainingPieces(
            latents, ranges, keys.tolist(), genres, bands, next_latents, next_ranges, has_next
        )
        check_training_pieces(pieces)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: run train.py again ({error})") from error
    return pieces


def check_training_pieces(pieces):
    """Raise a UserError unless each piece has a finite latent and range, and a key."""
    n = len(pieces.latents)
    shapes = (pieces.latents.ndim, pieces.ranges.shape, np.shape(pieces.keys), pieces.genres.shape)
    texts = [*pieces.keys, *pieces.genres.tolist()]
    if shapes != (2, (n, 2), (n,), (n,)) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"it has arrays of the shapes {shapes}")
    shapes = pieces.next_latents.shape, pieces.next_ranges.shape, pieces.has_next.shape
    if shapes != (pieces.latents.shape, (n, 2), (n,)) or pieces.has_next.dtype != bool:
        raise UserError(f"its next windows have arrays of the shapes {shapes}")
    if pieces.bands.dtype != np.uint8 or pieces.bands.ndim != 3 or len(pieces.bands) != n:
        raise UserError(f"it has bands of the shape {pieces.bands.shape}")
    numbers = pieces.latents, pieces.ranges, pieces.next_latents, pieces.next_ranges
    if not all(np.isfinite(array).all() for array in numbers):
        raise UserError("it holds numbers that are not finite")
    for key in pieces.keys:
        dataset.check_key(key)


def list_similar(name, names):
    """The names most similar to one, or the first few, for an error message."""
    names = sorted({*map(str, names)})
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5])


def check_variety(latents, purpose, remedy=MORE_AUDIO):
    """Raise a UserError unless two latents, float32 (n, latent_space_dim), differ.

    Args:
        purpose, remedy: for the message: what needs them, and what to do without.
    """
    if len(latents) < 2:
        got = len(latents)
    elif np.abs(latents - latents[0]).max() <= SAME_LATENT * np.abs(latents).max():
        got = f"{len(latents)} that are all the same"
    else:
        return
    raise UserError(f"{purpose} needs at least 2 training pieces, got {got}: {remedy}")


class Prior:
    """A density over training pieces and over what comes half a piece later, to draw from.

    Ex-post density estimation (Ghosh et al. 2020) by a stationary Gaussian process: a point is a
    latent, in principal components of unit variance, and the peak and span of its decibels. Two
    points half a piece apart are jointly Gaussian, their covariance shrunk towards the identity as
    far as the number of pieces asks for (Ledoit and Wolf 2004); so what follows a point is linear
    in it, but for noise. Each genre has a mean of its own.

    Args:
        pieces: the TrainingPieces.
        genre: to draw from; None: from all, as often as they occur.
    Raises:
        UserError: there are no two pieces that differ, or none of the genre.
    """

    def __init__(self, pieces, genre=None):
        from sklearn.covariance import ledoit_wolf
        from sklearn.decomposition import PCA

        self.n_pieces = len(pieces.take_genre(genre).keys)
        check_variety(pieces.latents, "a prior")
        peaks = measure_peaks(pieces.ranges)
        self._peak_limits = peaks.min(axis=0), peaks.max(axis=0)
        self._peak_mean, self._peak_scale = peaks.mean(axis=0), peaks.std(axis=0) + 1e-3
        most = max(1, min(MAX_COMPONENTS, len(peaks) // PIECES_PER_COMPONENT))
        pca = PCA(min(most, *pieces.latents.shape), svd_solver="randomized", random_state=0)
        pca.fit(pieces.latents)
        shares = np.cumsum(pca.explained_variance_ratio_)
        count = int(np.searchsorted(shares, PRIOR_VARIANCE)) + 1
        self._latent_mean, self._components = pca.mean_, pca.components_[:count]
        self._scale = np.sqrt(pca.explained_variance_[:count]) + 1e-6
        points = self._make_points(pieces.latents, pieces.ranges)
        names, self._genres = np.unique(pieces.genres, return_inverse=True)
        self._means = np.stack([points[self._genres == i].mean(axis=0) for i in range(len(names))])
        if genre is not None:
            self._genres = self._genres[names[self._genres] == genre]
        of_piece = self._means[np.searchsorted(names, pieces.genres)]
        points -= of_piece
        next_points = self._make_points(pieces.next_latents, pieces.next_ranges) - of_piece
        pairs = np.hstack([points, next_points])[pieces.has_next]
        # A window half a piece later has its own successor: the next piece of the track.
        followers = np.flatnonzero(pieces.has_next[:-1])
        pairs = np.vstack([pairs, np.hstack([next_points[followers], points[followers + 1]])])
        self._fit(points, pairs, ledoit_wolf)

    @property
    def n_components(self):
        return len(self._components)

    def _fit(self, points, pairs, estimate):
        """Set the covariance of a point, and what of the next one follows from it."""
        d = points.shape[1]
        if len(pairs) < 2 * PIECES_PER_COMPONENT:  # nothing is known of what follows
            covariance, _ = estimate(points, assume_centered=True)
            self._step, rest = np.zeros((d, d)), covariance
        else:
            joint, _ = estimate(pairs, assume_centered=True)
            covariance = joint[:d, :d]
            self._step = np.linalg.solve(covariance, joint[:d, d:]).T
            rest = joint[d:, d:] - self._step @ joint[:d, d:]
        self._start_factor, self._noise_factor = map(factorise, (covariance, rest))

    def sample(self, count, temperature, rng):
        """Draw (latents float32 (count, latent_space_dim), ranges float32 (count, 2), dB).

        Args:
            temperature: factor on the deviations from a genre's mean, >= 0.
        """
        means = self._means[rng.choice(self._genres, count)]
        noise = rng.standard_normal(means.shape)
        return self._restore(means + temperature * noise @ self._start_factor.T)

    def walk(self, n_windows, temperature, rng, start=None):
        """The latents and ranges of n_windows windows that follow each other by half a piece.

        Args:
            start: (latent, (min, max) in dB) of the window before the first, or None.
        """
        if start is None:
            mean = self._means[rng.choice(self._genres)]
            deviation = temperature * self._start_factor @ rng.standard_normal(len(mean))
        else:
            (point,) = self._make_points(*(np.array([value]) for value in start))
            means = self._means[np.unique(self._genres)]
            mean = means[np.square(means - point).sum(axis=1).argmin()]  # of the nearest genre
            deviation = self._follow(point - mean, temperature, rng)
        points = np.empty((n_windows, len(mean)))
        for index in range(n_windows):
            points[index] = mean + deviation
            deviation = self._follow(deviation, temperature, rng)
        return self._restore(points)

    def _follow(self, deviation, temperature, rng):
        """A deviation from the mean, half a piece later."""
        noise = rng.standard_normal(len(deviation))
        return self._step @ deviation + temperature * self._noise_factor @ noise

    def _make_points(self, latents, ranges):
        """Latents and ranges as points, float64 (n, n_components + 2)."""
        latents = (latents - self._latent_mean) @ self._components.T / self._scale
        peaks = (measure_peaks(ranges) - self._peak_mean) / self._peak_scale
        return np.hstack([latents, peaks]).astype(np.float64)

    def _restore(self, points):
        """The latents and ranges of points."""
        latents = self._latent_mean + (points[:, :-2] * self._scale) @ self._components
        peaks, spans = np.clip(
            points[:, -2:] * self._peak_scale + self._peak_mean, *self._peak_limits
        ).T
        ranges = np.stack([peaks - spans, peaks], axis=1)
        return latents.astype(np.float32), ranges.astype(np.float32)


def measure_peaks(ranges):
    """The peak and span of each (min, max), float (n, 2), dB."""
    return np.stack([ranges[:, 1], ranges[:, 1] - ranges[:, 0]], axis=1)


def factorise(covariance):
    """A matrix that colours white noise; what rounding made negative is left out."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return vectors * np.sqrt(np.maximum(values, 0))
