"""What a run learns from: spectrograms on disk, and windows at any frame of them.

In:  the folder that preprocess.py wrote.
Out: images, float32 (height, width, channels), in [0, 1].

    images = Pieces("saved_data/spectrograms", None, keys)[:8]
"""

import concurrent.futures
import math

import numpy as np

from preprocess import TOP_DB, MinMaxNormaliser, resize_spectrogram
from support import dataset

MEMORY_SHARE = 0.5  # of the memory that is free: what pieces may take before they are streamed
CHECK_KEYS = 1000  # that are checked together
START_WINDOWS_PER_PIECE = 20  # drawn for the components that training starts from, at most
MAX_STRETCH = 0.02  # of a window's time and of its frequencies, as a logarithm: up to 2 %
EDGE_FRAMES = 2  # how far a track without a next piece is shifted, against its floor


class Windows:
    """Draws training windows that start at any frame of a track, not only where pieces start.

    A window runs from a piece on into the next one of its track, in decibels, a little faster or
    slower and higher or lower than recorded (each cell is the nearest one's copy), and gets a
    range and floor of its own, as preprocess.py would have given it. A track's last piece has
    none to run on into: its windows move by EDGE_FRAMES at most, against the floor.

    Args:
        images: float32 (n, height, width, channels), in [0, 1], in the order of the keys; an
            array or Pieces.
        keys: str (n,), as dataset.list_keys gives them.
        min_max_values: {key: {"min": dB, "max": dB}}.
        top_db: dB kept below a window's peak.
    """

    def __init__(self, images, keys, min_max_values, top_db=TOP_DB):
        self.images = images
        self.low = np.array([min_max_values[key]["min"] for key in keys], np.float32)
        self.high = np.array([min_max_values[key]["max"] for key in keys], np.float32)
        self.top_db = top_db
        # Pieces of one track are neighbours in the list, in the order of their segments.
        tracks = [dataset.get_track(key) for key in keys]
        self.goes_on = [a == b for a, b in zip(tracks, tracks[1:], strict=False)] + [False]

    def draw(self, indices, rng, max_stretch=MAX_STRETCH):
        """One window near each piece, float32 (len(indices), height, width, channels)."""
        return np.stack([self._draw_one(index, rng, max_stretch) for index in indices])

    def draw_start(self, rng):
        """Unstretched windows for the principal components that training starts from."""
        from autoencoder import START_IMAGES

        count = min(START_IMAGES, START_WINDOWS_PER_PIECE * len(self.images))
        return self.draw(rng.integers(len(self.images), size=count), rng, max_stretch=0)

    def _draw_one(self, index, rng, max_stretch):
        height, width, _ = shape = self.images.shape[1:]
        bins, frames = (
            np.rint(np.arange(n) * np.exp(rng.uniform(-max_stretch, max_stretch))).astype(int)
            for n in (height, width)
        )
        if self.goes_on[index]:
            frames = np.minimum(frames + rng.integers(width), 2 * width - 1)
        else:
            frames += rng.integers(-EDGE_FRAMES, EDGE_FRAMES + 1)
        window = np.full(shape, self.low[index])  # (height, width, channels), dB
        for piece, first in [(index, 0), (index + 1, width)][: 1 + self.goes_on[index]]:
            start, stop = np.searchsorted(frames, (first, first + width))
            cells = np.take(self.images[piece], frames[start:stop] - first, axis=1)
            cells *= self.high[piece] - self.low[piece]
            window[:, start:stop] = cells + self.low[piece]
        window = np.take(window, np.minimum(bins, height - 1), axis=0)
        window = np.maximum(window, window.max() - self.top_db)
        return MinMaxNormaliser(0, 1).normalise(window)


class Pieces:
    """Spectrograms on disk, read each time they are asked for; used like an array of them.

    Args:
        spectrograms_path: folder that holds them.
        target_shape: (height, width) to resize to; None keeps the native shape.
        keys: which ones, at least one.
    Raises:
        ValueError: a file is damaged, or of another shape than the first; when it is read.
    """

    def __init__(self, spectrograms_path, target_shape, keys):
        self.spectrograms_path = spectrograms_path
        self.target_shape = target_shape
        self.keys = keys
        self.native_shape = dataset.load_spectrogram(spectrograms_path, keys[0]).shape
        height_and_width = target_shape or self.native_shape[:2]
        self.shape = (len(keys), *height_and_width, self.native_shape[2])
        self.nbytes = 4 * math.prod(self.shape)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        """One piece, float32 (height, width, channels), or those of a slice or of indices."""
        if np.ndim(index) == 0 and not isinstance(index, slice):
            return self._load(self.keys[index])
        return np.stack([self._load(self.keys[i]) for i in np.arange(len(self))[index]])

    def check(self):
        """Read every file once, and raise the ValueError of the first that cannot be used."""
        with concurrent.futures.ThreadPoolExecutor() as executor:
            for start in range(0, len(self.keys), CHECK_KEYS):
                for _ in executor.map(self._load_native, self.keys[start : start + CHECK_KEYS]):
                    pass

    def _load_native(self, key):
        spectrogram = dataset.load_spectrogram(self.spectrograms_path, key)
        if spectrogram.shape != self.native_shape:
            raise ValueError(
                f"{key} must have the first one's shape {self.native_shape}, "
                f"got {spectrogram.shape}: run preprocess.py --force"
            )
        return spectrogram

    def _load(self, key):
        spectrogram = self._load_native(key)
        if self.target_shape:
            spectrogram = resize_spectrogram(spectrogram, self.target_shape)
        return spectrogram


def needs_streaming(spectrograms_path, target_shape, keys):
    """Whether these pieces would take more than MEMORY_SHARE of the memory that is free."""
    import psutil

    n_bytes = Pieces(spectrograms_path, target_shape, keys).nbytes
    return n_bytes > MEMORY_SHARE * psutil.virtual_memory().available
