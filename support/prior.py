"""New latents: a flow fills what is unknown of a sequence, in the style of a track.

In:  latents float32 (steps, latent_space_dim), which of them are known, and a style.
Out: all of them; model/prior.npz.

    prior = Prior.load("model")
    latents = prior.fill(latents, known, prior.styles[0], rng=np.random.default_rng(0))
"""

import difflib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.errors import UserError

PRIOR = "prior.npz"  # in a model folder
WINDOW_STEPS = 64  # that are drawn together: 12 s
FILTERS = 32, 256  # of the flow, at least and at most
DILATIONS = (1, 2, 4, 8, 4, 2)  # of a block each: 42 steps to either side are seen
CONTEXT = 0.375  # share of a window's steps, at least, that is known in a long piece
TEMPERATURE = 1.0  # factor on the noise that is the start
GUIDANCE = 2.0  # see Flow.draw
STYLE_NOISE = 0.3  # of the tracks' deviation, by which a style varies
MIN_DEVIATION = 1e-4  # of the largest: what hardly varies is not blown up
MIN_STYLE_DEVIATION = 0.1  # of few tracks' mean latents: those of many vary more
SAME_LATENT = 1e-5  # of the largest number in any latent: more than float32 rounds


class Prior(NamedTuple):
    """What a Flow learned of the latents of tracks.

    A style is the mean of a track's latents. What is drawn is standardised: centred, and divided
    by the root of its deviation, so that what is heard most still counts most.

    Args:
        window: steps that are drawn together.
        mean, scale: float32 (d,), of the latents.
        style_scale: float32 (d,), the deviations of the tracks' mean standardised latents.
        styles: float32 (n, d), these means, of the training tracks, divided by it.
        tracks, genres: str (n,).
        n_steps: int (n,), of each track.
        peaks: float32 (n,), dB.
    """

    flow: object
    window: int
    mean: np.ndarray
    scale: np.ndarray
    style_scale: np.ndarray
    styles: np.ndarray
    tracks: np.ndarray
    genres: np.ndarray
    n_steps: np.ndarray
    peaks: np.ndarray

    @classmethod
    def prepare(cls, tracks, latents):
        """The Prior of TrainingTracks and their latents, whose flow has learned nothing yet.

        Args:
            latents: a list of float32 (steps, d).
        Raises:
            UserError: no two steps differ.
        """
        from support.flow import Flow, choose_filters  # it takes seconds to import Keras

        n_steps, together = np.array([*map(len, latents)]), np.concatenate(latents)
        if np.abs(together - together[0]).max() <= SAME_LATENT * np.abs(together).max():
            raise UserError(
                "a prior needs steps of music that differ: preprocess more audio and train again"
            )
        mean, deviation = together.mean(axis=0), together.std(axis=0)
        scale = np.sqrt(np.maximum(deviation, MIN_DEVIATION * deviation.max()))
        scale *= np.sqrt(np.square(deviation / scale).mean())  # what is drawn has variance 1
        d, window = len(mean), int(min(WINDOW_STEPS, np.median(n_steps)))
        styles = np.array([((each - mean) / scale).mean(axis=0) for each in latents])
        style_scale = np.maximum(styles.std(axis=0), MIN_STYLE_DEVIATION)
        whose = tracks.tracks, tracks.genres, n_steps, tracks.peaks
        flow = Flow(d, 1, d + 1, choose_filters(len(together), FILTERS), DILATIONS)
        return cls(flow, window, mean, scale, style_scale, styles / style_scale, *whose)

    def standardise(self, latents):
        """Latents as the flow draws them."""
        return (latents - self.mean) / self.scale

    def find_style(self, latents):
        """The style of latents, float32 (d,)."""
        return self.standardise(latents).mean(axis=0) / self.style_scale

    def draw_style(self, rng, genre=None):
        """A style near that of a training track, which is drawn as often as it is long.

        Returns:
            (style float32 (d,), the index of the track).
        Raises:
            UserError: no track has this genre; it lists similar ones.
        """
        weights = self.n_steps if genre is None else self.n_steps * (self.genres == genre)
        if not weights.any():
            genres = list_similar(genre, self.genres)
            raise UserError(f"no genre is called {genre!r}, but: {genres}")
        index = rng.choice(len(weights), p=weights / weights.sum())
        style = self.styles[index]
        return style + STYLE_NOISE * rng.standard_normal(style.shape, np.float32), index

    def find_directions(self):
        """The main directions in which styles differ, float32 (n, d), one deviation long."""
        deviations = self.styles - self.styles.mean(axis=0)
        _, lengths, directions = np.linalg.svd(deviations, full_matrices=False)
        scale = lengths[:, np.newaxis] / np.sqrt(len(deviations))
        return (scale * directions)[: max(1, len(deviations) - 1)].astype(np.float32)

    def fill(self, latents, known, style, *, temperature=TEMPERATURE, guidance=GUIDANCE, rng):
        """Latents whose unknown steps are drawn: new music, or what goes with the known ones.

        Args:
            latents: float32 (steps, d), of any number of steps.
            known: bool (steps,), which of them stay.
            style: float32 (d,), or one for each step.
            temperature: factor on the noise that it starts from, >= 0: lower is more typical.
            guidance: see Flow.draw.
        """
        n_steps, d = latents.shape
        missing = max(0, self.window - n_steps)  # is drawn too, on both sides
        widths = [(missing // 2, missing - missing // 2), (0, 0)]
        place = np.pad(self.standardise(latents), widths)
        known = np.pad(known, widths[0])
        style = np.pad(np.atleast_2d(style), [(0, 0), (0, 1)], constant_values=1)  # 1: there is one
        changes = len(style) > 1  # from step to step
        style = np.pad(style, widths, mode="edge") if changes else style
        while not known.all():
            start = find_stretch(known, self.window)
            stretch = slice(start, start + self.window)
            noise = temperature * rng.standard_normal((self.window, d), np.float32)
            is_known = known[stretch, np.newaxis]
            (drawn,) = self.flow.draw(
                np.where(is_known, place[stretch], noise)[np.newaxis],
                is_known[np.newaxis].astype(np.float32),
                style[np.newaxis, stretch if changes else slice(None)],
                known[np.newaxis, stretch],
                guidance=guidance,
            )
            place[stretch], known[stretch] = drawn, True
        place = place[missing // 2 : missing // 2 + n_steps]
        return (place * self.scale + self.mean).astype(np.float32)

    def save(self, folder):
        """Write prior.npz."""
        from support.flow import save_learned

        save_learned(Path(folder) / PRIOR, self)

    @classmethod
    def load(cls, folder):
        """The Prior of a model folder; for errors see load_learned()."""
        from support.flow import load_learned

        if_missing = "run train.py --resume, on enough music and without --flow_epochs 0"
        return load_learned(cls, Path(folder) / PRIOR, if_missing)


def find_stretch(known, window):
    """Where the next window of steps to draw begins, so that it sees what is known beside them."""
    edges = np.flatnonzero(np.diff(known, prepend=True, append=True))
    first, stop = edges[:2]  # of the first unknown run
    most = max(1, window - round(CONTEXT * window))
    n_drawn = -(-(stop - first) // -(-(stop - first) // most))  # in even parts
    if first == 0 and stop < len(known):  # known after it alone: from right to left
        start = stop - n_drawn
    elif n_drawn == stop - first and stop < len(known):  # known on both sides
        start = first - (window - n_drawn) // 2
    else:
        start = first + n_drawn - window
    return int(np.clip(start, 0, len(known) - window))


def list_similar(name, names):
    """The names most similar to one, or the first few, for an error message."""
    names = sorted({*map(str, names)})
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5])
