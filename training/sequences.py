"""What flows learn from: sequences on their way from noise.

In:  a Prior and latents of tracks, or a Detail and Windows.
Out: batches for Keras.

    network.fit(LatentSequences(prior, latents, batch_size=32, n_batches=100, seed=0))
"""

import functools
import hashlib

import numpy as np

from support.detail import NOISE_REACH, Detail, to_frames
from support.keras import keras
from support.prior import STYLE_NOISE

PLAIN = 0.15  # share of the sequences whose style is not told
MASKED = 0.5  # share of the sequences of which some steps are known
MOST_KNOWN = 0.75  # share of a sequence's steps
N_FRAMES = 64  # of a window that are learned from: more windows are worth more than longer ones
STEADY = 0.125  # share of the windows that stand still, so that tones stay what they are
N_DECODED = 8192  # frames, at most, that pass through the autoencoder for a batch
N_PREPARED = 32768  # frames, at most, that a Detail is prepared with


class Sequences(keras.utils.PyDataset):
    """Sequences, each at a random time between noise and itself.

    What each batch holds follows from the seed, the epoch and its number. A subclass has cut(rng),
    which draws sequences, and list_arrays(), of all that they depend on.

    Args:
        batch_size: sequences.
        n_batches: of an epoch.
        seed: of all chance.
        is_training: whether each epoch has other batches; else they are made once, and kept.
    """

    def __init__(self, batch_size, n_batches, seed, is_training=True):
        super().__init__(workers=1)
        self.batch_size = batch_size
        self.n_batches = n_batches
        self.seed = seed
        self.is_training = is_training
        self.epoch = 0
        if not is_training:
            self.make_batch = functools.cache(self.make_batch)

    @property
    def fingerprint(self):
        """A checksum of what the batches depend on."""
        digest = hashlib.sha256(repr((self.batch_size, len(self), self.seed)).encode())
        for array in self.list_arrays():
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def __len__(self):
        return self.n_batches

    def __getitem__(self, index):
        return self.make_batch(index, self.epoch if self.is_training else 0)

    def make_batch(self, index, epoch):
        """(inputs of the network, velocities, their weights) of one batch."""
        rng = np.random.default_rng((self.seed, epoch, index))
        data, known, inputs = self.cut(rng)
        noise = self.draw_noise(rng, data.shape)
        time = 1 / (1 + np.exp(-rng.standard_normal((len(data), 1, 1), np.float32)))  # logit-normal
        place = (1 - time) * noise + time * data
        inputs |= {"place": np.where(known[..., np.newaxis], data, place), "time": time[:, :, 0]}
        is_drawn = 1 - known.astype(np.float32)
        return inputs, data - noise, is_drawn / is_drawn.mean()  # what is known does not count

    def draw_noise(self, rng, shape):
        """The noise that sequences come from, float32."""
        return rng.standard_normal(shape, np.float32)

    def start_epoch(self, epoch, logs=None):
        """Choose the epoch that the batches are drawn for."""
        self.epoch = epoch


class LatentSequences(Sequences):
    """Windows at any step of tracks' latents.

    Of some, steps at the beginning, at the end or on both sides are known.

    Args:
        prior: the Prior that standardises them.
        latents: a list of float32 (steps, d), each of a track; one that is shorter than a window
            is repeated.
        is_training: whether styles are varied or left out, too.
    """

    def __init__(self, prior, latents, *how, is_training=True):
        super().__init__(*how, is_training)
        self.window = prior.window
        self.latents = prior.standardise(np.concatenate(latents)).astype(np.float16)
        self.n_steps = np.array([*map(len, latents)])
        self.firsts = np.cumsum(self.n_steps) - self.n_steps
        self.styles = np.array([*map(prior.find_style, latents)])

    def list_arrays(self):
        return [np.array(self.window), self.latents, self.n_steps]

    def cut(self, rng):
        """(data float32 (n, window, d), which are known bool (n, window), what else is given)."""
        n, window = self.batch_size, self.window
        tracks = rng.choice(len(self.n_steps), n, p=self.n_steps / self.n_steps.sum())
        lengths = self.n_steps[tracks, np.newaxis]
        starts = (rng.random((n, 1)) * np.maximum(1, lengths - window + 1)).astype(int)
        steps = self.firsts[tracks, np.newaxis] + (starts + np.arange(window)) % lengths
        known = self._mask(rng)
        styles = np.pad(self.styles[tracks], [(0, 0), (0, 1)], constant_values=1)
        if self.is_training:
            styles[:, :-1] += STYLE_NOISE * rng.standard_normal(styles[:, :-1].shape, np.float32)
            styles *= rng.random((n, 1)) >= PLAIN
        given = {"given": known[..., np.newaxis].astype(np.float32), "style": styles[:, np.newaxis]}
        return self.latents[steps].astype(np.float32), known, given

    def _mask(self, rng):
        """Which steps are known, bool (n, window)."""
        n, steps = self.batch_size, np.arange(self.window)
        sides = rng.integers(1, 4, n) * (rng.random(n) < MASKED)  # bits: beginning, end
        counts = MOST_KNOWN * self.window * rng.random((2, n)) / np.where(sides == 3, 2, 1)
        before, after = (counts * [sides & 1, sides >> 1]).astype(int)[..., np.newaxis]
        return (steps < before) | (steps >= self.window - after)


class FrameSequences(Sequences):
    """What frames lose in an autoencoder: at most N_FRAMES at any place of windows.

    Args:
        detail: the Detail that scales it; None prepares one of these windows.
        autoencoder: an Autoencoder, trained.
    """

    def __init__(self, detail, autoencoder, windows, *how, is_training=True):
        super().__init__(*how, is_training)
        self.autoencoder, self.windows = autoencoder, windows
        n, _, width, channels = windows.shape
        self.n_windows = min(-(-self.batch_size // channels), max(1, N_DECODED // width))
        if not detail:
            pairs = self._draw_pairs(np.random.default_rng(self.seed), max(1, N_PREPARED // width))
            detail = Detail.prepare(*pairs, n * width * channels)
        self.detail = detail

    def list_arrays(self):
        return [*self.autoencoder.model.get_weights(), self.detail.scale]

    def cut(self, rng):
        """(what frames lose, float32 (n, n_frames, height); none are known; the rest of them)."""
        pairs = self._draw_pairs(rng, self.n_windows)
        n, (n_sequences, width, _) = self.batch_size, pairs[0].shape
        which = np.arange(n)[:, np.newaxis] % n_sequences
        n_frames = min(N_FRAMES, width)
        places = rng.integers(width - n_frames + 1, size=(n, 1)) + np.arange(n_frames)
        frames, reconstructed = (each[which, places] for each in pairs)
        lost = (frames - reconstructed) / self.detail.scale
        known = np.zeros(lost.shape[:2], bool)
        return lost, known, {"given": self.detail.standardise(reconstructed)}

    def draw_noise(self, rng, shape):
        n, width, height = shape
        shape = n, width + 2 * NOISE_REACH, height + 2 * NOISE_REACH
        return self.detail.filter_noise(rng.standard_normal(shape, np.float32))

    def _draw_pairs(self, rng, count):
        """Frames of windows and of their reconstructions."""
        indices = rng.integers(self.windows.shape[0], size=count)
        images = np.array(self.windows.make(indices, rng))
        n_steady = round(STEADY * count)
        images[:n_steady] = images[:n_steady].mean(axis=2, keepdims=True)
        return [*map(to_frames, (images, self.autoencoder.reconstruct(images)[0]))]
