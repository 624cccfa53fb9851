"""The tracks that a model learned from, in few numbers: new music is compared with them.

In:  model/tracks.npz.
Out: TrainingTracks.

    tracks = TrainingTracks.load("model")
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.files import load_arrays, reading, write_arrays

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
        """The TrainingTracks of a model folder; for errors see reading()."""
        path = Path(folder) / TRACKS
        with reading(path, "run train.py again"):
            return cls(**load_arrays(path))
