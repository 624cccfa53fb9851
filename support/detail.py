"""What the bottleneck takes from sound, drawn: detail.

In:  images that came out of the autoencoder, float32 (height, width, n_channels), in [0, 1].
Out: images with what they had lost; model/detail.npz.

    detail = Detail.load("model")
    image = detail.add(image, seed=0)

The least squared error is a mean's, so a reconstruction is smooth where the sound was grainy, and
too quiet, for the mean of decibels lies below the decibels of the mean. No latent can carry the
grain; but a flow can draw some that goes with the mean: scatter where there was noise, none on
tones, and sharper attacks.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

DETAIL = "detail.npz"  # in a model folder
FILTERS = 320  # of the flow
DILATIONS = (1, 2, 4, 1)
N_EULER = 8
MIN_DEVIATION = 1e-3  # of an image's row: what hardly varies is not blown up
NOISE_FRAMES = 256  # that are made together


class Detail(NamedTuple):
    """What a Flow learned of the difference between images and their reconstructions.

    Each channel is a sequence of its frames.

    Args:
        flow: the Flow.
        mean, deviation: float32 (height,), of reconstructed frames.
        scale: float32 (height,), the deviation of what they lost.
    """

    flow: object
    mean: np.ndarray
    deviation: np.ndarray
    scale: np.ndarray

    @classmethod
    def prepare(cls, frames, reconstructed):
        """The Detail of frames, float32 (n, steps, height), whose flow has learned nothing yet."""
        from support.flow import Flow  # it takes seconds to import Keras

        mean = reconstructed.mean(axis=(0, 1))
        deviation, scale = (
            np.maximum(each.std(axis=(0, 1)), MIN_DEVIATION)
            for each in (reconstructed, frames - reconstructed)
        )
        height = len(mean)
        return cls(Flow(height, height, 0, FILTERS, DILATIONS), mean, deviation, scale)

    @property
    def reach(self):
        """Frames to either side that what is drawn depends on."""
        return N_EULER * self.flow.reach

    def standardise(self, reconstructed):
        """Reconstructed frames as they are given to the flow."""
        return (reconstructed - self.mean) / self.deviation

    def add(self, image, seed=0, first_frame=0):
        """An image with detail.

        Args:
            image: float32 (height, width, n_channels), in [0, 1], out of the autoencoder.
            seed: of the noise, which all channels share, so that it does not part them.
            first_frame: where it begins in a longer one, whose parts fit together.
        """
        frames = to_frames(image[np.newaxis])
        noise = make_noise(seed, first_frame, frames.shape[1:])
        given = self.standardise(frames)
        lost = self.flow.draw(np.tile(noise, (len(frames), 1, 1)), given, n_euler=N_EULER)
        return np.clip(frames + self.scale * lost, 0, 1).transpose(2, 1, 0)

    def save(self, folder):
        """Write detail.npz."""
        from support.flow import save_learned

        save_learned(Path(folder) / DETAIL, self)

    @classmethod
    def load(cls, folder):
        """The Detail of a model folder; None if it was trained without.

        Raises:
            UserError: it is damaged, or of an earlier version.
        """
        from support.flow import load_learned

        path = Path(folder) / DETAIL
        return load_learned(cls, path) if path.exists() else None


def to_frames(images):
    """The frames of images, (n, height, width, channels), as (n * channels, width, height)."""
    n, height, width, channels = images.shape
    return images.transpose(0, 3, 2, 1).reshape(n * channels, width, height)


def make_noise(seed, first, shape):
    """Standard normal noise that goes on from part to part, float32 (n_frames, height).

    Args:
        first: the frame that it begins with.
    """
    n_frames, height = shape
    blocks = range(first // NOISE_FRAMES, -(-(first + n_frames) // NOISE_FRAMES))
    noise = np.concatenate([make_block(seed, block, height) for block in blocks])
    return noise[first - blocks[0] * NOISE_FRAMES :][:n_frames]


@functools.lru_cache(maxsize=16)
def make_block(seed, block, height):
    """NOISE_FRAMES of noise."""
    rng = np.random.default_rng((seed, block))
    return rng.standard_normal((NOISE_FRAMES, height), np.float32)
