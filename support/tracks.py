"""The tracks that a model learned from, in few numbers: new music is compared with them.

In:  model/tracks.npz.
Out: TrainingTracks.

    tracks = TrainingTracks.load("model")
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.errors import UserError
from support.files import load_arrays, write_arrays

TRACKS = "tracks.npz"  # in a model folder


class TrainingTracks(NamedTuple):
    """Training tracks, one after the other."""

    bands: np.ndarray  # uint8 (sum of n_steps, n_bands): see support/bands.py; 255 is their 1
    n_steps: np.ndarray  # int (n,), of their bands
    peaks: np.ndarray  # float32 (n,), dB
    tracks: np.ndarray  # str (n,)
    genres: np.ndarray  # str (n,), top folders

    def save(self, folder):
        """Write tracks.npz."""
        write_arrays(Path(folder) / TRACKS, **self._asdict())

    @classmethod
    def load(cls, folder):
        """The TrainingTracks of a model folder.

        Raises:
            FileNotFoundError: tracks.npz does not exist.
            UserError: it is damaged, or of an earlier version.
        """
        path = Path(folder) / TRACKS
        arrays = load_arrays(path, "run train.py again")
        try:
            tracks = cls(**arrays)
            counts = {
                len(tracks.n_steps),
                len(tracks.peaks),
                len(tracks.tracks),
                len(tracks.genres),
            }
            is_whole = counts == {len(tracks.n_steps)} and tracks.n_steps.sum() == len(tracks.bands)
        except TypeError as error:
            raise UserError(f"{path} is of another version: run train.py again") from error
        if not is_whole or tracks.bands.ndim != 2 or tracks.n_steps.min(initial=1) < 1:
            raise UserError(f"{path} is damaged: run train.py again")
        return tracks
