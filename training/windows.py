"""What a run learns from: windows at any frame of tracks, each as loud as it may come.

In:  pieces, float16 (n, height, width, channels), their decibel ranges and their tracks.
Out: batches of frames for Keras, and the model that makes images of them where it computes.

    windows = Windows(x_train, ranges, tracks, batch_size=16, seed=0)
    autoencoder.train(windows, None, epochs=10)

A processor only gathers frames, each of which lies in one place of the memory; decibels, pitch and
level are array operations of the model, on a GPU if there is one.
"""

import numpy as np

from autoencoder import keras
from preprocess import TOP_DB
from support.keras import choose_compilation
from support.spectrograms import SILENCE_DB
from training.devices import ONE_DEVICE

MAX_STRETCH = 0.02  # of a window's time and of a batch's frequencies, as a logarithm: up to 2 %
EDGE_FRAMES = 2  # how far the window of a track of one piece is shifted
ops = keras.ops


class Windows(keras.utils.PyDataset):
    """A window near each piece, once an epoch, as it follows from the seed and its number.

    A window begins at any frame of a piece and runs on into the next one of its track, or back
    into the one before; it is a little faster or slower and higher or lower than recorded, and
    in a range between its track's and its own. The next batches are gathered while one trains:
    without these threads tf.data's autotuning, which sleeps twice as long each time, would hold up
    the end of an epoch (2.21).

    Args:
        pieces: float (n, height, width, channels), in [0, 1]; those of a track are neighbours, in
            their order.
        ranges: float (n, 2), (min, max) of each in dB; None: all alike.
        tracks: (n,), what those of a track have in common; None: each is one.
        top_db: dB kept below the peak of a range.
        batch_size: windows in a batch; the last one holds the rest.
        seed: of the order and the windows; None: the pieces in their order and the ranges of
            their tracks.
        shift: whether windows may differ from the pieces.
        distribution: the Distribution over devices, for which each batch is rounded up, with
            windows from the epoch's beginning, and over processes, which take turns in it.
    """

    def __init__(
        self,
        pieces,
        ranges=None,
        tracks=None,
        *,
        top_db=TOP_DB,
        batch_size=16,
        seed=None,
        shift=True,
        distribution=ONE_DEVICE,
    ):
        super().__init__(workers=2)
        n, height, width, channels = self.shape = pieces.shape
        # The pieces that load_fsdd loads are in this order already.
        self.frames = pieces.transpose(0, 2, 1, 3).reshape(n * width, height, channels)
        self.ranges = np.asarray([(-top_db, 0)] * n if ranges is None else ranges, np.float32)
        names = np.arange(n) if tracks is None else np.asarray(tracks)
        firsts = np.flatnonzero(np.append(True, names[1:] != names[:-1]))
        counts = np.diff([*firsts, n])
        self.first = np.repeat(firsts, counts)  # piece of each one's track, and what follows it
        self.stop = np.repeat(firsts + counts, counts)
        self.peaks = np.repeat(np.maximum.reduceat(self.ranges[:, 1], firsts), counts)
        self.top_db = top_db
        self.distribution = distribution
        self.batch_size = self._round_up(batch_size)
        self.seed = seed
        self.shift = shift and seed is not None
        self.start_epoch(0)

    def __len__(self):
        return -(-self.shape[0] // self.batch_size)

    def __getitem__(self, index):
        n_pieces = self.shape[0]
        start = index * self.batch_size
        n_left = self._round_up(n_pieces - start)
        places = np.arange(start, start + min(self.batch_size, n_left)) % n_pieces
        first, count = self.distribution.share
        rng = None
        if self.shift:
            rng = np.random.default_rng((self.seed, self.epoch, index, first))
        return self.gather(self.order[places[first::count]], rng)

    def _round_up(self, count):
        return -(-count // self.distribution.n_devices) * self.distribution.n_devices

    def gather(self, indices, rng=None, max_stretch=MAX_STRETCH):
        """What make_images() needs of a window near each of some pieces.

        Args:
            rng: of where, how fast, how high and how loud; None: the pieces in the ranges of
                their tracks.
        """
        width, n = self.shape[2], len(indices)
        starts, speeds, pitches, levels = width * indices, np.ones(n), np.ones(n), np.zeros(n)
        if rng:
            is_first, is_last = self.first[indices] == indices, self.stop[indices] == indices + 1
            least = np.where(is_last, np.where(is_first, -EDGE_FRAMES, 1 - width), 0)
            most = np.where(is_last, np.where(is_first, EDGE_FRAMES, 0), width - 1)
            starts = starts + rng.integers(least, most + 1)
            speeds, pitches = np.exp(rng.uniform(-max_stretch, max_stretch, (2, n)))
            pitches **= rng.integers(2)  # half of the batches are as high as they were recorded
            levels = np.minimum(1, rng.uniform(0, 2, n))  # half are in their own range
        frames = starts[:, None] + np.rint(np.outer(speeds, np.arange(width))).astype(int)
        first, last = width * self.first[indices], width * self.stop[indices] - 1
        frames = np.clip(frames, first[:, None], last[:, None])
        return self._collect(frames, self.peaks[indices], levels, pitches)

    def _collect(self, frames, peaks, levels, pitches):
        """The batch of frames, int (n, width), with their ranges."""
        ranges = self.ranges[frames // self.shape[2]]  # (n, width, 2)
        return {
            "frames": self.frames[frames],  # (n, width, height, channels)
            "low": ranges[..., 0],
            "high": ranges[..., 1],
            "peak": peaks,
            "level": levels.astype(np.float32),
            "pitch": pitches.astype(np.float32),
        }

    def cut(self, indices):
        """The images of some pieces, float32, in the ranges of their tracks."""
        return np.stack([self.cut_track(index, np.arange(self.shape[2])) for index in indices])

    def cut_track(self, index, frames, pitch=1.0):
        """One image of frames of a track, float (n,), counted from the start of a piece."""
        frames = self.shape[2] * index + np.rint(frames).astype(int)
        frames = np.minimum(frames, self.shape[2] * self.stop[index] - 1)
        how = self.peaks[[index]], np.zeros(1), np.full(1, pitch)
        gathered = self._collect(frames[np.newaxis], *how)
        return ops.convert_to_numpy(make_images(gathered, self.top_db))[0]

    def draw(self, count, seed):
        """Images of at most count windows near pieces, neither faster nor higher.

        If windows may differ from the pieces, some may be near the same one.
        """
        rng, n_pieces = np.random.default_rng(seed), self.shape[0]
        count = count if self.shift else min(count, n_pieces)
        chosen = rng.permutation(np.resize(rng.permutation(n_pieces), count))
        batches = np.array_split(chosen, -(-count // self.batch_size))
        return np.concatenate([self.make(batch, rng, max_stretch=0) for batch in batches])

    def make(self, indices, rng, max_stretch=MAX_STRETCH):
        """The images of windows near some pieces or, if they may not differ, of the pieces."""
        gathered = self.gather(indices, rng if self.shift else None, max_stretch)
        return ops.convert_to_numpy(make_images(gathered, self.top_db))

    def start_epoch(self, epoch, logs=None):
        """Choose the epoch that the batches are drawn for.

        A callback does, at its beginning: Keras 3.15 calls on_epoch_end more than once.
        """
        self.epoch = epoch
        self.order = np.arange(self.shape[0])
        if self.seed is not None:
            self.order = np.random.default_rng((self.seed, epoch)).permutation(self.shape[0])

    def make_model(self, autoencoder):
        """The compiled model that fit() and evaluate() give these batches to."""
        model = WindowModel(autoencoder, self.top_db)
        model.compile(
            optimizer=autoencoder.model.optimizer,
            loss=autoencoder.model.loss,
            jit_compile=choose_compilation(),
        )
        return model


class WindowModel(keras.Model):
    """An autoencoder of what Windows gather: it has its weights, and the error of its images."""

    def __init__(self, autoencoder, top_db):
        super().__init__()
        self.autoencoder = autoencoder.model
        self.top_db = top_db

    def call(self, gathered, training=False):
        images = make_images(gathered, self.top_db)
        return images, self.autoencoder(images, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        images, reconstructed = y_pred
        return super().compute_loss(x, images, reconstructed, sample_weight, training)


def make_images(gathered, top_db):
    """The images of gathered windows: in decibels, at their pitch, in their range.

    Returns:
        float32 (n, height, width, channels), in [0, 1].
    """
    low, high = (gathered[name][..., None, None] for name in ("low", "high"))
    frames = ops.cast(gathered["frames"], "float32")
    decibels = ops.transpose(low + (high - low) * frames, (0, 2, 1, 3))
    height = decibels.shape[1]
    bins = ops.round(gathered["pitch"][0] * np.arange(height, dtype=np.float32))
    decibels = ops.take(decibels, ops.cast(ops.minimum(bins, height - 1), "int32"), axis=1)
    peak = gathered["peak"][:, None, None, None]  # of the track
    own_peak = ops.max(decibels, axis=(1, 2, 3), keepdims=True)
    peak = peak + gathered["level"][:, None, None, None] * (own_peak - peak)
    images = ops.clip(1 + (decibels - peak) / top_db, 0, 1)
    return ops.where(decibels <= SILENCE_DB, 0.0, images)
