"""New latents: a density over those of the training pieces, and over what follows them.

In:  the training pieces' latents and ranges, and those of the windows between them.
Out: model/latents.npz, model/prior.npz; latents float32 (n, latent_space_dim) and ranges float32
     (n, 2) in dB.

    Prior.fit(pieces, followers).save("model")
    latents, ranges, track = Prior.load("model").walk(40, 1.0, np.random.default_rng(0))
"""

import difflib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support import dataset
from support.errors import UserError
from support.files import load_arrays, write_arrays

LATENTS = "latents.npz"  # in a model folder
PRIOR = "prior.npz"  # in a model folder
PRIOR_VARIANCE = 0.99  # share of the latents' variance that the prior models
PIECES_PER_COMPONENT = 4  # at least, of principal components
MAX_COMPONENTS = 1024
MIN_GROUP = 4  # pieces of a track, on average, that tell how it strays from its mean
SPREAD_PIECES = 8  # of typical spread, that a group's own pieces are mixed with
RIDGE = 1e-6  # variance of directions in which nothing varies; that of all pieces is 1
MAX_CORRELATION = 0.999  # of a window and the next, for a process that goes on for ever
MAX_SCORE = 3.0  # of a peak or span, in deviations from the median
MAD_TO_DEVIATION = 1.4826  # from the median absolute deviation of a Gaussian to its standard one
SAME_LATENT = 1e-5  # of the largest number in any latent: more than float32 rounds
MORE_AUDIO = "preprocess more audio and train again"  # a remedy


class TrainingPieces(NamedTuple):
    """What model/latents.npz says of the pieces that the model learned from."""

    latents: np.ndarray  # float32 (n, latent_space_dim)
    ranges: np.ndarray  # float32 (n, 2), min and max in dB
    keys: list
    genres: np.ndarray  # str (n,), top folders
    bands: np.ndarray  # uint8 (n, n_steps, n_bands): see support/bands.py; 255 is their 1

    def save(self, folder):
        """Write latents.npz."""
        arrays = {"latent": self.latents, "min": self.ranges[:, 0], "max": self.ranges[:, 1]}
        arrays |= {"key": np.array(self.keys), "genre": self.genres, "bands": self.bands}
        write_arrays(Path(folder) / LATENTS, **arrays)

    @classmethod
    def load(cls, folder):
        """The TrainingPieces of a model folder.

        Raises:
            FileNotFoundError: latents.npz does not exist.
            UserError: it is damaged.
        """
        path = Path(folder) / LATENTS
        if not path.is_file():
            raise FileNotFoundError(f"no latents at {path}: run train.py again")
        try:
            arrays = load_arrays(path)
            with np.errstate(over="ignore"):  # what overflows is refused below
                ranges = np.stack([arrays["min"], arrays["max"]], axis=1).astype(np.float32)
                latents = arrays["latent"].astype(np.float32, copy=False)
            keys, genres, bands = (arrays[name] for name in ("key", "genre", "bands"))
            pieces = cls(latents, ranges, keys.tolist(), genres, bands)
            check_training_pieces(pieces)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: run train.py again ({error})") from error
        return pieces


class Followers(NamedTuple):
    """The windows half a piece after training pieces, for a Prior to learn from."""

    exist: np.ndarray  # bool (n,): not so for the last piece of a track, and then the rest is zero
    latents: np.ndarray  # float32 (n, latent_space_dim)
    ranges: np.ndarray  # float32 (n, 2), min and max in dB


def check_training_pieces(pieces):
    """Raise a UserError unless each piece has a finite latent and range, and a key."""
    n = len(pieces.latents)
    shapes = (pieces.latents.ndim, pieces.ranges.shape, np.shape(pieces.keys), pieces.genres.shape)
    texts = [*pieces.keys, *pieces.genres.tolist()]
    if shapes != (2, (n, 2), (n,), (n,)) or not all(isinstance(text, str) for text in texts):
        raise UserError(f"it has arrays of the shapes {shapes}")
    if pieces.bands.dtype != np.uint8 or pieces.bands.ndim != 3 or len(pieces.bands) != n:
        raise UserError(f"it has bands of the shape {pieces.bands.shape}")
    if not np.isfinite(pieces.latents).all() or not np.isfinite(pieces.ranges).all():
        raise UserError("it holds numbers that are not finite")
    for key in pieces.keys:
        dataset.check_key(key)


def list_similar(name, names):
    """The names most similar to one, or the first few, for an error message."""
    names = sorted({*map(str, names)})
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5])


def check_variety(latents):
    """Raise a UserError unless two latents, float32 (n, latent_space_dim), differ."""
    if len(latents) < 2:
        got = len(latents)
    elif np.abs(latents - latents[0]).max() <= SAME_LATENT * np.abs(latents).max():
        got = f"{len(latents)} that are all the same"
    else:
        return
    raise UserError(f"a prior needs at least 2 training pieces, got {got}: {MORE_AUDIO}")


class Space(NamedTuple):
    """Points: latents in principal components of unit variance, then a peak and a span, as scores.

    Args:
        latent_mean: float32 (latent_space_dim,).
        components: float32 (n_components, latent_space_dim), orthonormal rows.
        scale: float32 (n_components,), standard deviations.
        peak_median, peak_scale: float32 (2,), of peaks and spans, dB; a score is at most
            MAX_SCORE, for a few pieces that are nearly silent would outweigh all others.
    """

    latent_mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray
    peak_median: np.ndarray
    peak_scale: np.ndarray

    @classmethod
    def fit(cls, latents, ranges):
        """As many components as the number of pieces can bear and PRIOR_VARIANCE asks for."""
        from sklearn.decomposition import PCA

        most = max(1, min(MAX_COMPONENTS, len(latents) // PIECES_PER_COMPONENT))
        pca = PCA(min(most, *latents.shape), svd_solver="randomized", random_state=0).fit(latents)
        shares = np.cumsum(pca.explained_variance_ratio_)
        count = int(np.searchsorted(shares, PRIOR_VARIANCE)) + 1
        peaks = measure_peaks(ranges)
        median = np.median(peaks, axis=0)
        return cls(
            pca.mean_,
            pca.components_[:count],
            np.sqrt(pca.explained_variance_[:count]) + 1e-6,
            median,
            MAD_TO_DEVIATION * np.median(np.abs(peaks - median), axis=0) + 1e-3,
        )

    def make_points(self, latents, ranges):
        """Latents and ranges, (min, max) in dB, as float64 (n, n_components + 2)."""
        latents = (latents - self.latent_mean) @ self.components.T / self.scale
        scores = (measure_peaks(ranges) - self.peak_median) / self.peak_scale
        scores = np.clip(scores, -MAX_SCORE, MAX_SCORE)
        return np.hstack([latents, scores]).astype(np.float64)

    def restore(self, points):
        """(latents float32 (n, latent_space_dim), ranges float32 (n, 2)) of points."""
        latents = self.latent_mean + (points[:, :-2] * self.scale) @ self.components
        scores = np.clip(points[:, -2:], -MAX_SCORE, MAX_SCORE)
        peaks, spans = (scores * self.peak_scale + self.peak_median).T
        ranges = np.stack([peaks - spans, peaks], axis=1)
        return latents.astype(np.float32), ranges.astype(np.float32)


class Prior(NamedTuple):
    """A density over new pieces and over what comes half a piece later, to draw from.

    Ex-post density estimation (Ghosh et al. 2020). A new piece is in the manner of one group of
    training pieces, those of a track: it strays from their mean as far as they do. How it strays
    is one stationary Gaussian process for all groups: deviations half a piece apart are jointly
    Gaussian, so what follows a point is linear in it, but for noise.

    Args:
        space: the Space of its points.
        groups: str (n_groups,), names of tracks.
        genres: str (n_groups,).
        counts: int64 (n_groups,), training pieces.
        centres: float32 (n_groups, n_components + 2), the means of their points.
        spreads: float32 (n_groups,), how far they stray, 1 on average.
        start_factor, noise_factor: float32 (n_components + 2, same), which colour white noise.
        step: float32, the same shape, from a deviation to the mean of the next one.
    """

    space: Space
    groups: np.ndarray
    genres: np.ndarray
    counts: np.ndarray
    centres: np.ndarray
    spreads: np.ndarray
    start_factor: np.ndarray
    noise_factor: np.ndarray
    step: np.ndarray

    @classmethod
    def fit(cls, pieces, followers):
        """The Prior over TrainingPieces and Followers; a UserError if no two pieces differ."""
        check_variety(pieces.latents)
        space = Space.fit(pieces.latents, pieces.ranges)
        names, firsts, groups = group_pieces(pieces)
        counts = np.bincount(groups)
        # All windows of a track: its pieces, and behind them the windows between them.
        earlier = np.flatnonzero(followers.exist)
        latents = np.vstack([pieces.latents, followers.latents[earlier]])
        ranges = np.vstack([pieces.ranges, followers.ranges[earlier]])
        points = space.make_points(latents, ranges)
        groups = np.concatenate([groups, groups[earlier]])
        n_windows = np.bincount(groups)
        centres = np.zeros((len(names), points.shape[1]))
        np.add.at(centres, groups, points / n_windows[groups, np.newaxis])

        deviations = points - centres[groups]
        squares = np.bincount(groups, np.square(deviations).mean(axis=1))
        typical = max(squares.sum() / max(1, len(points) - len(names)), 1e-12)
        spreads = (SPREAD_PIECES * typical + squares) / (SPREAD_PIECES + n_windows - 1)
        spreads = np.sqrt(spreads / typical)
        # Deviations from a mean of few are too small.
        scale = spreads[groups] * np.sqrt(1 - len(names) / (len(points) + 1))
        deviations /= scale[:, np.newaxis]
        between = len(pieces.keys) + np.arange(len(earlier))
        chain = [[earlier, between], [between, earlier + 1]]
        pairs = np.vstack([np.hstack([deviations[a], deviations[b]]) for a, b in chain])
        step, *factors = fit_process(deviations, pairs)
        arrays = (counts, centres, spreads, *factors, step)
        return cls(space, names, pieces.genres[firsts], *arrays)

    @property
    def n_components(self):
        return len(self.space.components)

    def take_genre(self, genre):
        """The Prior over the groups of one genre, or this one if it is None.

        Raises:
            UserError: there is no such genre; it lists similar ones.
        """
        if genre is None:
            return self
        chosen = np.flatnonzero(self.genres == genre)
        if not len(chosen):
            genres = list_similar(genre, self.genres)
            raise UserError(f"no genre is called {genre!r}, but: {genres}")
        per_group = ("groups", "genres", "counts", "centres", "spreads")
        return self._replace(**{name: getattr(self, name)[chosen] for name in per_group})

    def sample(self, count, temperature, rng):
        """Draw new pieces.

        Args:
            temperature: factor on the deviations from a group's mean, >= 0.
        Returns:
            (latents float32 (count, latent_space_dim), ranges float32 (count, 2) in dB, the names
            of their groups).
        """
        groups = self._choose_groups(count, rng)
        noise = rng.standard_normal((count, self.centres.shape[1]))
        deviations = temperature * self.spreads[groups, np.newaxis] * (noise @ self.start_factor.T)
        return *self.space.restore(self.centres[groups] + deviations), self.groups[groups]

    def walk(self, n_windows, temperature, rng, start=None):
        """A piece of n_windows windows that follow each other by half a piece.

        Args:
            start: (latent, (min, max) in dB) of the window before the first, whose level the
                piece keeps, in the manner of the nearest group; or None.
        Returns:
            (latents, ranges, the name of its group), as sample() has them.
        """
        if start is None:
            (group,) = self._choose_groups(1, rng)
            centre = self.centres[group]
            deviation = temperature * self.start_factor @ rng.standard_normal(len(self.step))
        else:
            (point,) = self.space.make_points(*(np.array([value]) for value in start))
            group = np.square(self.centres - point).sum(axis=1).argmin()
            centre = np.hstack([self.centres[group, :-2], point[-2:]])
            deviation = (point - centre) / self.spreads[group]
            deviation = self._follow(deviation, temperature, rng)
        points = np.empty((n_windows, len(deviation)))
        for index in range(n_windows):
            points[index] = centre + self.spreads[group] * deviation
            deviation = self._follow(deviation, temperature, rng)
        return *self.space.restore(points), self.groups[group]

    def _choose_groups(self, count, rng):
        """Indices of groups, each as often as it has pieces."""
        return rng.choice(len(self.counts), count, p=self.counts / self.counts.sum())

    def _follow(self, deviation, temperature, rng):
        """A deviation in units of its group's spread, half a piece later."""
        noise = rng.standard_normal(len(deviation))
        return self.step @ deviation + temperature * self.noise_factor @ noise

    def save(self, folder):
        """Write prior.npz."""
        arrays = self.space._asdict() | self._asdict()
        del arrays["space"]
        floats = {name: each.astype(np.float32) for name, each in arrays.items() if is_real(each)}
        write_arrays(Path(folder) / PRIOR, **(arrays | floats))

    @classmethod
    def load(cls, folder):
        """The Prior of a model folder.

        Raises:
            FileNotFoundError: prior.npz does not exist.
            UserError: it is damaged.
        """
        path = Path(folder) / PRIOR
        if not path.is_file():
            raise FileNotFoundError(
                f"no prior at {path}: it needs at least 2 training pieces that differ; {MORE_AUDIO}"
            )
        try:
            arrays = load_arrays(path)
            space = Space(**{name: arrays.pop(name) for name in Space._fields})
            prior = cls(space=space, **arrays)
            check_prior(prior)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: run train.py again ({error})") from error
        return prior


def is_real(array):
    return array.dtype.kind == "f"


def check_prior(prior):
    """Raise a UserError unless a Prior's arrays are finite and fit together."""
    space = prior.space
    n_components, dim = np.shape(space.components)
    n_groups, n = len(prior.counts), n_components + 2
    shapes = {
        "latent_mean": (dim,),
        "components": (n_components, dim),
        "scale": (n_components,),
        "peak_median": (2,),
        "peak_scale": (2,),
        "centres": (n_groups, n),
        "spreads": (n_groups,),
        "start_factor": (n, n),
        "noise_factor": (n, n),
        "step": (n, n),
    }
    arrays = space._asdict() | prior._asdict()
    for name, shape in shapes.items():
        array = arrays[name]
        if array.shape != shape or not is_real(array) or not np.isfinite(array).all():
            raise UserError(f"{name} must be finite numbers of the shape {shape}")
    for name in ("groups", "genres"):
        if arrays[name].shape != (n_groups,) or arrays[name].dtype.kind != "U":
            raise UserError(f"{name} must be {n_groups} texts")
    counts = prior.counts
    if counts.shape != (n_groups,) or counts.dtype.kind != "i" or not n_groups or counts.min() < 1:
        raise UserError("counts must be at least 1")


def group_pieces(pieces):
    """The groups of training pieces: tracks that have MIN_GROUP pieces on average, or genres.

    If each genre has a single piece, all are one group.

    Returns:
        (names str (n_groups,), the index of the first piece of each, the group of each piece).
    """
    tracks = np.array([dataset.get_track(key) for key in pieces.keys])
    names, firsts, groups = np.unique(tracks, return_index=True, return_inverse=True)
    if len(tracks) < MIN_GROUP * len(names):
        names, firsts, groups = np.unique(pieces.genres, return_index=True, return_inverse=True)
    if len(tracks) == len(names):
        names, firsts, groups = names[:1], firsts[:1], np.zeros_like(groups)
    return names, firsts, groups


def fit_process(deviations, pairs):
    """The stationary Gaussian process of deviations, (n, d), and pairs of successive ones, (n, 2d).

    In coordinates in which deviations are white, the next one is their correlations times this
    one, and noise. These have singular values below 1, so it neither dies out nor grows. They are
    not shrunk: two windows share a half, and noise would tear it apart.

    Returns:
        (step (d, d), the factors (d, d) that colour the noise of a start and of a step).
    """
    d = deviations.shape[1]
    is_known = len(pairs) >= 2 * PIECES_PER_COMPONENT  # what follows
    rows = pairs.reshape(-1, d) if is_known else deviations
    covariance = rows.T @ rows / len(rows) + RIDGE * np.eye(d)
    start_factor = np.linalg.cholesky(covariance)
    correlations = np.zeros((d, d))
    if is_known:
        white = np.linalg.solve(start_factor, rows.T).T.reshape(-1, 2, d)
        correlations = white[:, 1].T @ white[:, 0] / len(white)
    left, values, right = np.linalg.svd(correlations)
    values = np.minimum(values, MAX_CORRELATION)
    step = np.linalg.solve(start_factor.T, (start_factor @ (left * values) @ right).T).T
    return step, start_factor, start_factor @ (left * np.sqrt(1 - values**2))


def measure_peaks(ranges):
    """The peak and span of each (min, max), float (n, 2), dB."""
    return np.stack([ranges[:, 1], ranges[:, 1] - ranges[:, 0]], axis=1)
