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
from support.arrays import load_arrays

PRIOR_VARIANCE = 0.99  # share of the latents' variance that the prior models
PRIOR_COMPONENTS = (1, 2, 4, 8, 16)  # Gaussians to choose from
PRIOR_MARGIN = 1e-3  # added to the variances
PRIOR_FOLDS = 4  # of the cross-validation that chooses
PRIOR_POINTS = 2000  # at most, that it chooses by; the chosen mixture is fitted to all
KEY_WINDOWS = 4  # windows between two draws of a long walk


class TrainingPieces(NamedTuple):
    """What model/latents.npz tells of the pieces that the model learned from."""

    latents: np.ndarray  # float32 (n, latent_space_dim)
    ranges: np.ndarray  # float32 (n, 2), min and max in dB
    keys: list
    genres: np.ndarray  # str (n,), top folders

    def take(self, indices):
        """Some of the pieces."""
        keys = [self.keys[index] for index in indices]
        return TrainingPieces(
            self.latents[indices], self.ranges[indices], keys, self.genres[indices]
        )


def load_training_pieces(model_folder):
    """The TrainingPieces of a model folder.

    Raises:
        FileNotFoundError, ValueError: latents.npz is missing or damaged.
    """
    path = Path(model_folder) / "latents.npz"
    if not path.is_file():
        raise FileNotFoundError(f"no latents at {path}: run train.py again")
    try:
        arrays = load_arrays(path)
        ranges = np.stack([arrays["min"], arrays["max"]], axis=1).astype(np.float32)
        latents = arrays["latent"].astype(np.float32)
        pieces = TrainingPieces(latents, ranges, arrays["key"].tolist(), arrays["genre"])
        check_training_pieces(pieces)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: run train.py again ({error})") from error
    return pieces


def check_training_pieces(pieces):
    """Raise a ValueError unless there is a finite latent and range, and a key, of each piece."""
    n = len(pieces.latents)
    shapes = (pieces.latents.ndim, pieces.ranges.shape, np.shape(pieces.keys), pieces.genres.shape)
    texts = [*pieces.keys, *pieces.genres.tolist()]
    if shapes != (2, (n, 2), (n,), (n,)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"it has arrays of the shapes {shapes}")
    if not (np.isfinite(pieces.latents).all() and np.isfinite(pieces.ranges).all()):
        raise ValueError("it holds numbers that are not finite")
    for key in pieces.keys:
        dataset.check_key(key)


def choose_genre(pieces, genre):
    """The TrainingPieces of one genre, or all; ValueError that lists the near ones."""
    if genre is None:
        return pieces
    chosen = np.flatnonzero(pieces.genres == genre)
    if not len(chosen):
        raise ValueError(
            f"no genre is called {genre!r}: there is {list_near(genre, pieces.genres)}"
        )
    return pieces.take(chosen)


def list_near(name, names):
    """The names nearest to one, or the first few, for an error message."""
    names = sorted({*map(str, names)})
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5])


class Prior:
    """A density over training pieces, to draw new ones from (ex-post, Ghosh et al. 2020).

    A Gaussian mixture over (latent, min, max): the latents in the principal components that hold
    PRIOR_VARIANCE of their variance, all of unit variance; the number of Gaussians and the form
    of their covariance have the highest held-out likelihood.

    Args:
        latents: float32 (n, latent_space_dim).
        ranges: float32 (n, 2), min and max in dB.
    Raises:
        ValueError: there are fewer than two pieces.
    """

    def __init__(self, latents, ranges, seed=0):
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        if len(latents) < 2:
            raise ValueError(
                f"a prior needs at least 2 training pieces, got {len(latents)}: name another "
                "--genre, or preprocess more audio and train again"
            )
        self._pca = PCA(PRIOR_VARIANCE, svd_solver="full", whiten=True).fit(latents)
        self._mean_range, self._deviation = ranges.mean(axis=0), ranges.std(axis=0) + 1e-3
        self._limits = ranges.min(axis=0), ranges.max(axis=0)
        self.mean = self._pca.mean_  # of the latents
        points = np.hstack([
            self._pca.transform(latents), (ranges - self._mean_range) / self._deviation
        ])  # fmt: skip
        self.n_components, self.covariance_type = choose_mixture(points, seed)
        self._mixture = GaussianMixture(
            self.n_components, covariance_type=self.covariance_type, reg_covar=PRIOR_MARGIN,
            random_state=seed,
        ).fit(points)  # fmt: skip

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
        ranges = np.clip(points[:, -2:] * self._deviation + self._mean_range, *self._limits)
        return latents.astype(np.float32), ranges.astype(np.float32)

    def walk(self, n_windows, temperature, rng):
        """A smooth walk: the latents and ranges of n_windows windows, as sample() gives them.

        It goes from draw to draw in KEY_WINDOWS steps each, on an arc about the mean, so that
        points between two draws are as far from it as the draws are.
        """
        latents, ranges = self.sample(-(-n_windows // KEY_WINDOWS) + 1, temperature, rng)
        keys, steps = np.divmod(np.arange(n_windows), KEY_WINDOWS)
        share = (steps / KEY_WINDOWS)[:, np.newaxis]
        around = latents - self.mean
        walked = (
            np.cos(share * np.pi / 2) * around[keys] + np.sin(share * np.pi / 2) * around[keys + 1]
        )
        return (
            (walked + self.mean).astype(np.float32),
            ((1 - share) * ranges[keys] + share * ranges[keys + 1]).astype(np.float32),
        )


def choose_mixture(points, seed):
    """(number of Gaussians, covariance type) with the highest likelihood of points left out.

    A form of covariance is tried where there are as many points as a Gaussian of it needs.
    """
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import KFold, cross_val_score

    if len(points) > PRIOR_POINTS:
        rng = np.random.default_rng(seed)
        points = points[rng.choice(len(points), PRIOR_POINTS, replace=False)]
    folds = KFold(min(PRIOR_FOLDS, len(points)), shuffle=True, random_state=seed)
    n_fitted = min(len(fitted) for fitted, _ in folds.split(points))
    n_dims = points.shape[1]
    scores = {}
    for count in PRIOR_COMPONENTS:
        needed = {"spherical": 4 * count, "diag": 4 * count, "tied": n_dims, "full": n_dims * count}
        for covariance_type, n_needed in needed.items():
            if n_fitted < max(n_needed, 4 * count):
                continue
            mixture = GaussianMixture(
                count, covariance_type=covariance_type, reg_covar=PRIOR_MARGIN, random_state=seed
            )
            scores[count, covariance_type] = cross_val_score(mixture, points, cv=folds).mean()
    return max(scores, key=scores.get, default=(1, "spherical"))
