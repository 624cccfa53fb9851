"""What a run learns from: spectrograms on disk, and windows at any frame of them.

In:  the folder that preprocess.py wrote.
Out: images, float32 (height, width, channels), in [0, 1].

    images = Pieces("saved_data/spectrograms", None, keys)[:8]
"""

import concurrent.futures
import math

import numpy as np

from preprocess import MinMaxNormaliser
from support import dataset
from support.errors import UserError
from support.spectrograms import resize, to_image, to_log_spectrogram

MEMORY_SHARE = 0.5  # of the free memory; more than that is streamed
CHECK_KEYS = 1000  # checked together
MAX_STRETCH = 0.02  # of a window's time and of its frequencies, as a logarithm: up to 2 %
EDGE_FRAMES = 2  # how far a track without a next piece is shifted, against its floor


class Windows:
    """Draws training windows that start at any frame of a track, not only where pieces start.

    A window runs from a piece on into the next one of its track, in decibels, a little faster or
    slower and higher or lower than recorded (each cell is the nearest one's copy), and gets its
    own range and floor, as preprocess.py would have given it. A track's last piece has no next
    one: its windows move by EDGE_FRAMES at most, against the floor.

    Args:
        images: float32 (n, height, width, channels), in [0, 1], in the order of the keys; an
            array or Pieces.
        keys: str (n,), as dataset.list_keys gives them.
        min_max_values: {key: {"min": dB, "max": dB}}.
        top_db: dB kept below a window's peak.
    Attributes:
        has_next: whether each piece is followed by another one of its track.
    """

    def __init__(self, images, keys, min_max_values, top_db):
        self.images = images
        self.min_max_values = [min_max_values[key] for key in keys]
        self.top_db = top_db
        self.shape = images.shape
        self.nbytes = images.nbytes
        self._normaliser = MinMaxNormaliser(0, 1)
        # Pieces of one track are neighbours in the list, in the order of their segments.
        tracks = [dataset.get_track(key) for key in keys]
        self.has_next = [a == b for a, b in zip(tracks, tracks[1:], strict=False)] + [False]

    def __len__(self):
        return len(self.images)

    def draw(self, indices, rng, max_stretch=MAX_STRETCH):
        """One window near each piece, float32 (len(indices), height, width, channels)."""
        return np.stack([self._draw_one(index, rng, max_stretch) for index in indices])

    def _draw_one(self, index, rng, max_stretch):
        height, width, _ = self.shape[1:]
        bins, frames = (
            np.rint(np.arange(n) * np.exp(rng.uniform(-max_stretch, max_stretch))).astype(int)
            for n in (height, width)
        )
        if self.has_next[index]:
            frames = np.minimum(frames + rng.integers(width), 2 * width - 1)
        else:
            frames += rng.integers(-EDGE_FRAMES, EDGE_FRAMES + 1)
        return self._cut(index, bins, frames)[0]

    def get_next(self, index):
        """The window that begins in the middle of a piece, which must have a next one.

        Returns:
            (image, its range {"min": dB, "max": dB}).
        """
        height, width, _ = self.shape[1:]
        return self._cut(index, np.arange(height), width // 2 + np.arange(width))

    def _cut(self, index, bins, frames):
        """The window of some bins and frames, counted from the start of a piece, and its range."""
        height, width, _ = self.shape[1:]
        pieces = [index, index + 1] if self.has_next[index] else [index]  # of `width` frames each
        window = np.full(self.shape[1:], self.min_max_values[index]["min"], np.float32)  # dB
        for piece, first in zip(pieces, (0, width), strict=False):
            start, stop = np.searchsorted(frames, (first, first + width))
            cells = np.take(self.images[piece], frames[start:stop] - first, axis=1)
            min_max = self.min_max_values[piece]
            window[:, start:stop] = to_log_spectrogram(cells, min_max, self._normaliser)
        window = np.take(window, np.minimum(bins, height - 1), axis=0)
        return to_image(window, self._normaliser, top_db=self.top_db)


class Pieces:
    """Spectrograms on disk, read each time they are asked for; used like an array of them.

    Args:
        spectrograms_path: folder that holds them.
        target_shape: (height, width) to resize to; None keeps their own shape.
        keys: which ones, at least one.
    Raises:
        UserError: a file is damaged, or of another shape than the first; when it is read.
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
            return resize(self._load_native(self.keys[index]), self.target_shape)
        return np.stack([self[i] for i in np.arange(len(self))[index]])

    def check(self):
        """Read every file once, and raise the UserError of the first that cannot be used."""
        with concurrent.futures.ThreadPoolExecutor() as executor:
            for start in range(0, len(self.keys), CHECK_KEYS):
                for _ in executor.map(self._load_native, self.keys[start : start + CHECK_KEYS]):
                    pass

    def needs_streaming(self):
        """Whether all together take more than MEMORY_SHARE of the free memory."""
        import psutil

        return self.nbytes > MEMORY_SHARE * psutil.virtual_memory().available

    def _load_native(self, key):
        spectrogram = dataset.load_spectrogram(self.spectrograms_path, key)
        if spectrogram.shape != self.native_shape:
            raise UserError(
                f"{key} must have the first one's shape {self.native_shape}, "
                f"got {spectrogram.shape}: run preprocess.py --force"
            )
        return spectrogram
