"""New latents: a density over those of the training pieces.

In:  model/latents.npz.
Out: latents float32 (n, latent_space_dim) and ranges float32 (n, 2) in dB.

    pieces = load_training_pieces("model")
    latents, ranges = Prior(pieces.latents, pieces.ranges).sample(8, 1.0, np.random.default_rng(0))
"""

import difflib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support import dataset
from support.command_line import show_progress
from support.errors import UserError
from support.files import load_arrays

PRIOR_VARIANCE = 0.99  # share of the latents' variance that the prior models
PRIOR_COMPONENTS = (1, 2, 4, 8, 16)  # Gaussians to choose from
PRIOR_MARGIN = 1e-3  # added to the variances
PRIOR_FOLDS = 4  # of the cross-validation that chooses
PRIOR_POINTS = 2000  # at most, that it chooses by; the chosen mixture is fitted to all
SAME_LATENT = 1e-5  # of the largest number in any latent: more than float32 rounds
MORE_AUDIO = "preprocess more audio and train again"  # a remedy
KEY_WINDOWS = 4  # windows between two draws of a long walk


class TrainingPieces(NamedTuple):
    """What model/latents.npz says of the pieces that the model learned from."""

    latents: np.ndarray  # float32 (n, latent_space_dim)
    ranges: np.ndarray  # float32 (n, 2), min and max in dB
    keys: list
    genres: np.ndarray  # str (n,), top folders
    bands: np.ndarray  # uint8 (n, n_steps, n_bands): see support/bands.py; 255 is their 1

    def take(self, indices):
        """The pieces at some indices."""
        keys = [self.keys[index] for index in indices]
        arrays = self.latents, self.ranges, self.genres, self.bands
        latents, ranges, genres, bands = (array[indices] for array in arrays)
        return TrainingPieces(latents, ranges, keys, genres, bands)

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
            ranges = np.stack([arrays["min"], arrays["max"]], axis=1).astype(np.float32)
            latents = arrays["latent"].astype(np.float32)
        keys, genres, bands = (arrays[name] for name in ("key", "genre", "bands"))
        pieces = TrainingPieces(latents, ranges, keys.tolist(), genres, bands)
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
    if pieces.bands.dtype != np.uint8 or pieces.bands.ndim != 3 or len(pieces.bands) != n:
        raise UserError(f"it has bands of the shape {pieces.bands.shape}")
    if not (np.isfinite(pieces.latents).all() and np.isfinite(pieces.ranges).all()):
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
    """A density over training pieces, to draw new ones from (ex-post, Ghosh et al. 2020).

    A Gaussian mixture over (latent, peak, span): the latents in the principal components that hold
    PRIOR_VARIANCE of their variance, all of unit variance; the number of Gaussians and the form
    of their covariance have the highest held-out likelihood.

    Args:
        latents: float32 (n, latent_space_dim).
        ranges: float32 (n, 2), min and max in dB.
    Raises:
        UserError: there are no two pieces that differ.
    """

    def __init__(self, latents, ranges, seed=0):
        from sklearn.decomposition import PCA
        from threadpoolctl import threadpool_limits

        check_variety(latents, "a prior", f"name another --genre, or {MORE_AUDIO}")
        peaks = np.stack([ranges[:, 1], ranges[:, 1] - ranges[:, 0]], axis=1)  # peak and span
        self._mean_peak, self._deviation = peaks.mean(axis=0), peaks.std(axis=0) + 1e-3
        self._limits = peaks.min(axis=0), peaks.max(axis=0)
        unit_peaks = (peaks - self._mean_peak) / self._deviation
        with threadpool_limits(1):  # on small matrices threads mostly wait
            self._pca = PCA(PRIOR_VARIANCE, svd_solver="full", whiten=True).fit(latents)
            points = np.hstack([self._pca.transform(latents), unit_peaks])
            self.n_components, self.covariance_type = choose_mixture(points, seed)
            self._mixture = make_mixture(self.n_components, self.covariance_type, seed).fit(points)
        self.mean = self._pca.mean_  # of the latents

    def sample(self, count, temperature, rng):
        """Draw (latents float32 (count, latent_space_dim), ranges float32 (count, 2), dB).

        Args:
            temperature: factor on the deviations from the Gaussians' means, >= 0.
        """
        mixture = self._mixture
        chosen = rng.choice(self.n_components, count, p=mixture.weights_)
        noise = temperature * rng.standard_normal((count, mixture.means_.shape[1]))
        points = mixture.means_[chosen]
        for point, component, values in zip(points, chosen, noise, strict=True):
            # The factor of the precision is upper triangular; its inverse colours white noise.
            factor = mixture.precisions_cholesky_
            if self.covariance_type != "tied":
                factor = factor[component]
            point += np.linalg.solve(factor.T, values) if factor.ndim == 2 else values / factor
        latents = self._pca.inverse_transform(points[:, :-2])
        peaks, spans = np.clip(points[:, -2:] * self._deviation + self._mean_peak, *self._limits).T
        ranges = np.stack([peaks - spans, peaks], axis=1)
        return latents.astype(np.float32), ranges.astype(np.float32)

    def walk(self, n_windows, temperature, rng):
        """A smooth walk: the latents and ranges of n_windows windows, as sample() gives them.

        It goes from draw to draw in KEY_WINDOWS steps each, on an arc about the mean, so that
        points between two draws are as far from it as the draws are.
        """
        latents, ranges = self.sample(-(-n_windows // KEY_WINDOWS) + 1, temperature, rng)
        keys, steps = np.divmod(np.arange(n_windows), KEY_WINDOWS)
        share = (steps / KEY_WINDOWS)[:, np.newaxis]
        centred, angle = latents - self.mean, share * np.pi / 2
        path = np.cos(angle) * centred[keys] + np.sin(angle) * centred[keys + 1] + self.mean
        ranges = (1 - share) * ranges[keys] + share * ranges[keys + 1]
        return path.astype(np.float32), ranges.astype(np.float32)


def choose_mixture(points, seed):
    """(number of Gaussians, covariance type) with the highest likelihood of points left out.

    A type of covariance is tried if there are as many points as a Gaussian of it needs.
    """
    from sklearn.model_selection import KFold, cross_val_score

    if len(points) > PRIOR_POINTS:
        rng = np.random.default_rng(seed)
        points = points[rng.choice(len(points), PRIOR_POINTS, replace=False)]
    folds = KFold(min(PRIOR_FOLDS, len(points)), shuffle=True, random_state=seed)
    n_fitted = min(len(fitted) for fitted, _ in folds.split(points))
    n_dims = points.shape[1]
    candidates, scores = [], {}
    for count in PRIOR_COMPONENTS:
        needed = {"spherical": 4 * count, "diag": 4 * count, "tied": n_dims, "full": n_dims * count}
        candidates += [(count, kind) for kind, n in needed.items() if n_fitted >= max(n, 4 * count)]
    for candidate in show_progress(candidates, len(candidates), "fitting the prior"):
        mixture = make_mixture(*candidate, seed)
        scores[candidate] = cross_val_score(mixture, points, cv=folds).mean()
    return max(scores, key=scores.get, default=(1, "spherical"))


def make_mixture(n_components, covariance_type, seed):
    from sklearn.mixture import GaussianMixture

    return GaussianMixture(
        n_components, covariance_type=covariance_type, reg_covar=PRIOR_MARGIN, random_state=seed
    )
