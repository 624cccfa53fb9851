"""New latents: a density over those of the training tracks, and over what follows them.

In:  the training tracks' latents.
Out: model/latents.npz, model/prior.npz; latents float32 (steps, latent_space_dim) and their peak
     in dB.

    Prior.fit(tracks).save("model")
    latents, peak, track = Prior.load("model").walk(160, 1.0, np.random.default_rng(0))
"""

import difflib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.errors import UserError
from support.files import load_arrays, write_arrays

LATENTS = "latents.npz"  # in a model folder
PRIOR = "prior.npz"  # in a model folder
MIN_GROUP = 32  # steps of a track, on average, that tell how it strays from its mean
SPREAD_STEPS = 128  # shrinkage: weight of the typical spread, in steps
RIDGE = 1e-3  # share of the mean variance that every direction has at least
MIN_VARIANCE = 1e-12  # if no step differs from another of its track
MAX_CORRELATION = 0.999  # of a step and the next, for a process that goes on for ever
SAME_LATENT = 1e-5  # of the largest number in any latent: more than float32 rounds
MORE_AUDIO = "preprocess more audio and train again"  # a remedy
TRACKS_FIELDS = {  # see load_fields()
    "latents": "fsd",
    "n_steps": "in",
    "bands": "ubk",
    "n_band_steps": "in",
    "peaks": "fn",
    "tracks": "Un",
    "genres": "Un",
}
PRIOR_FIELDS = {
    "groups": "Un",
    "genres": "Un",
    "counts": "in",
    "peaks": "fn",
    "centres": "fnd",
    "spreads": "fn",
    "start_factor": "fdd",
    "noise_factor": "fdd",
    "step": "fdd",
}


class TrainingTracks(NamedTuple):
    """What model/latents.npz says of the tracks that the model learned from."""

    latents: np.ndarray  # float32 (sum of n_steps, latent_space_dim), one track after the other
    n_steps: np.ndarray  # int (n,): steps of each track
    bands: np.ndarray  # uint8 (sum of n_band_steps, n_bands): see support/bands.py; 255 is their 1
    n_band_steps: np.ndarray  # int (n,)
    peaks: np.ndarray  # float32 (n,), dB
    tracks: np.ndarray  # str (n,)
    genres: np.ndarray  # str (n,), top folders

    def save(self, folder):
        """Write latents.npz."""
        write_arrays(Path(folder) / LATENTS, **self._asdict())

    @classmethod
    def load(cls, folder):
        """The TrainingTracks of a model folder.

        Raises:
            FileNotFoundError: latents.npz does not exist.
            UserError: it is damaged, or of an earlier version.
        """
        path = Path(folder) / LATENTS
        tracks = load_fields(cls, path, TRACKS_FIELDS, "run train.py again")
        counts = tracks.n_steps.sum(), tracks.n_band_steps.sum()
        if counts != (len(tracks.latents), len(tracks.bands)):
            raise UserError(f"{path} is damaged (it has other steps): run train.py again")
        return tracks


def load_fields(cls, path, kinds, if_missing):
    """A NamedTuple of arrays from an .npz file of its fields' names.

    Args:
        kinds: {name: numpy's kind and a letter for each size}; one letter is one size.
        if_missing: the remedy.
    Raises:
        FileNotFoundError: the file does not exist.
        UserError: it is damaged, or has other fields, or numbers that are not finite, or counts
            below 1.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: {if_missing}")
    arrays, sizes = load_arrays(path), {}
    try:
        fields = cls(**arrays)
        for name, (kind, *letters) in kinds.items():
            array = arrays[name]
            pairs = zip(letters, array.shape, strict=False)
            has_shape = array.ndim == len(letters) and 0 not in array.shape
            has_shape &= all(sizes.setdefault(*pair) == pair[1] for pair in pairs)
            is_finite = array.dtype.kind != "f" or np.isfinite(array).all()
            if array.dtype.kind != kind or not has_shape or not is_finite:
                raise UserError(name)
            if kind == "i" and array.min() < 1:
                raise UserError(name)
    except (TypeError, UserError) as error:
        raise UserError(
            f"{path} is damaged, or of another version ({error}): run train.py again"
        ) from error
    return fields


def list_similar(name, names):
    """The names most similar to one, or the first few, for an error message."""
    names = sorted({*map(str, names)})
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5])


class Prior(NamedTuple):
    """A density over latents and over the next step's, to draw from.

    Ex-post density estimation (Ghosh et al. 2020). New music is in the manner of one group of
    training steps, those of a track: it strays from their mean as far as they do. How it strays
    is one stationary Gaussian process for all groups: deviations of neighbouring steps are jointly
    Gaussian, so the next one is linear in this one, but for noise.

    Args:
        groups: str (n_groups,), names of tracks.
        genres: str (n_groups,).
        counts: int (n_groups,), training steps.
        peaks: float32 (n_groups,), dB.
        centres: float32 (n_groups, d), the means of their latents.
        spreads: float32 (n_groups,), how far they stray, 1 on average.
        start_factor, noise_factor: float32 (d, d), which colour white noise.
        step: float32 (d, d), from a deviation to the mean of the next one.
    """

    groups: np.ndarray
    genres: np.ndarray
    counts: np.ndarray
    peaks: np.ndarray
    centres: np.ndarray
    spreads: np.ndarray
    start_factor: np.ndarray
    noise_factor: np.ndarray
    step: np.ndarray

    @classmethod
    def fit(cls, tracks):
        """The Prior over TrainingTracks; a UserError if no two steps differ."""
        latents = tracks.latents
        check_variety(latents)
        names, firsts, groups = group_tracks(tracks)
        groups = np.repeat(groups, tracks.n_steps)
        counts = np.bincount(groups)
        centres = np.zeros((len(names), latents.shape[1]))
        np.add.at(centres, groups, latents / counts[groups, np.newaxis])
        peaks = np.zeros(len(names))
        np.add.at(peaks, groups, np.repeat(tracks.peaks, tracks.n_steps) / counts[groups])

        deviations = latents - centres[groups]
        squares = np.bincount(groups, np.square(deviations).mean(axis=1))
        typical = max(squares.sum() / max(1, len(latents) - len(names)), 1e-12)
        spreads = np.sqrt(
            (SPREAD_STEPS * typical + squares) / (SPREAD_STEPS + counts - 1) / typical
        )
        deviations /= spreads[groups, np.newaxis]
        is_last = np.zeros(len(latents), bool)  # of a track
        is_last[np.cumsum(tracks.n_steps) - 1] = True
        factors = fit_process(deviations, np.flatnonzero(~is_last))
        arrays = [each.astype(np.float32) for each in (peaks, centres, spreads, *factors)]
        return cls(names, tracks.genres[firsts], counts, *arrays)

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
        per_group = ("groups", "genres", "counts", "peaks", "centres", "spreads")
        return self._replace(**{name: getattr(self, name)[chosen] for name in per_group})

    def walk(self, n_steps, temperature, rng, *, past=None, offset=0):
        """Steps that follow each other, in the manner of one group.

        Args:
            temperature: factor on the deviations from the group's mean, >= 0.
            past: latent of the step before the first, float32 (latent_space_dim,), in the manner
                of the nearest group; or None.
            offset: added to the group's mean.
        Returns:
            (latents float32 (n_steps, latent_space_dim), the group's peak in dB, its name).
        """
        if past is None:
            group = rng.choice(len(self.counts), p=self.counts / self.counts.sum())
            deviation = temperature * self.start_factor @ rng.standard_normal(len(self.step))
        else:
            group = np.square(self.centres - past).sum(axis=1).argmin()
            deviation = (past - self.centres[group]) / self.spreads[group]
            deviation = self._follow(deviation, temperature, rng)
        deviations = np.empty((n_steps, len(deviation)), np.float32)
        for index in range(n_steps):
            deviations[index] = deviation
            deviation = self._follow(deviation, temperature, rng)
        latents = self.centres[group] + offset + self.spreads[group] * deviations
        return latents.astype(np.float32), float(self.peaks[group]), str(self.groups[group])

    def _follow(self, deviation, temperature, rng):
        """A deviation in units of its group's spread, a step later."""
        noise = rng.standard_normal(len(deviation))
        return self.step @ deviation + temperature * self.noise_factor @ noise

    def find_directions(self):
        """The main directions in which groups differ, float32 (n, latent_space_dim).

        Each is as long as the groups' standard deviation along it.
        """
        _, lengths, directions = np.linalg.svd(
            self.centres - self.centres.mean(axis=0), full_matrices=False
        )
        scale = lengths[:, np.newaxis] / np.sqrt(len(self.centres))
        return (scale * directions)[: max(1, len(self.centres) - 1)].astype(np.float32)

    def save(self, folder):
        """Write prior.npz."""
        write_arrays(Path(folder) / PRIOR, **self._asdict())

    @classmethod
    def load(cls, folder):
        """The Prior of a model folder.

        Raises:
            FileNotFoundError: prior.npz does not exist.
            UserError: it is damaged, or of an earlier version.
        """
        remedy = "it needs training steps that differ; " + MORE_AUDIO
        return load_fields(cls, Path(folder) / PRIOR, PRIOR_FIELDS, remedy)


def check_variety(latents):
    """Raise a UserError unless two latents, float32 (n, latent_space_dim), differ."""
    if len(latents) < 2 or (
        np.abs(latents - latents[0]).max() <= SAME_LATENT * np.abs(latents).max()
    ):
        raise UserError(f"a prior needs steps of music that differ: {MORE_AUDIO}")


def group_tracks(tracks):
    """The groups of training tracks: the tracks, or genres if they are shorter than MIN_GROUP.

    Returns:
        (names str (n_groups,), the index of the first track of each, the group of each track).
    """
    is_short = tracks.n_steps.mean() < MIN_GROUP
    names = tracks.genres if is_short else tracks.tracks
    return np.unique(names, return_index=True, return_inverse=True)


def fit_process(deviations, earlier):
    """The stationary Gaussian process of deviations, (n, d).

    In coordinates in which deviations are white, the next one is their correlations times this
    one, and noise. These have singular values below 1, so it neither dies out nor grows.

    Args:
        earlier: indices of those that another one of their track follows.
    Returns:
        the factors (d, d) that colour the noise of a start and of a step, and the step (d, d).
    """
    d = deviations.shape[1]
    covariance = deviations.T @ deviations / len(deviations)
    covariance += max(RIDGE * np.trace(covariance) / d, MIN_VARIANCE) * np.eye(d)
    start_factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(start_factor, deviations.T).T
    correlations = white[earlier + 1].T @ white[earlier] / max(1, len(earlier))
    left, values, right = np.linalg.svd(correlations)
    values = np.minimum(values, MAX_CORRELATION)
    step = np.linalg.solve(start_factor.T, (start_factor @ (left * values) @ right).T).T
    return start_factor, start_factor @ (left * np.sqrt(1 - values**2)), step
