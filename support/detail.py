"""What the bottleneck takes from sound, drawn: detail.

In:  images that came out of the autoencoder, float32 (height, width, n_channels), in [0, 1].
Out: images with what they had lost; model/detail.npz.

    detail = Detail.load("model")
    image = detail.add(image, seed=0)

The least squared error is a mean's, so a reconstruction is smooth where the sound was grainy, and
too quiet, for the mean of decibels lies below the decibels of the mean. No latent can carry the
grain; but a flow can draw some that goes with the mean: scatter where there was noise, little on
tones, and sharper attacks. The noise that it begins with is as alike from cell to cell as what is
lost is: neighbouring cells of a spectrogram are of overlapping samples and frequencies.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import fft
from scipy.ndimage import uniform_filter1d

from support.prior import PRIOR

DETAIL = "detail.npz"  # in a model folder
FILTERS = 32, 320  # of the flow, at least and at most
DILATIONS = (1, 2, 4, 1)
N_EULER = 8
MIN_DEVIATION = 1e-3  # of an image's row: what hardly varies is not blown up
CHANGE_FRAMES = 9  # over which changes from frame to frame are averaged
LEAST_CHANGE = 1e-3  # of what counts as one, in an image
NOISE_FRAMES = 256  # that are made together
NOISE_REACH = 8  # frames and rows to either side, over which noise is alike


class Detail(NamedTuple):
    """What a Flow learned of the difference between images and their reconstructions.

    Each channel is a sequence of its frames.

    Args:
        mean, deviation: float32 (height,), of reconstructed frames.
        scale: float32 (height,), the deviation of what they lost.
        kernel: float32, of 2 * NOISE_REACH + 1 on each side, what white noise is filtered with.
    """

    flow: object
    mean: np.ndarray
    deviation: np.ndarray
    scale: np.ndarray
    kernel: np.ndarray

    @classmethod
    def prepare(cls, frames, reconstructed, n_frames):
        """A Detail whose flow has learned nothing yet.

        Args:
            frames, reconstructed: float32 (n, steps, height), some of those to train on.
            n_frames: how many there are in all.
        """
        from support.flow import Flow, choose_filters  # it takes seconds to import Keras

        mean = reconstructed.mean(axis=(0, 1))
        deviation, scale = (
            np.maximum(each.std(axis=(0, 1)), MIN_DEVIATION)
            for each in (reconstructed, frames - reconstructed)
        )
        height = len(mean)
        flow = Flow(height, 2 * height, 0, choose_filters(n_frames, FILTERS), DILATIONS)
        kernel = find_kernel((frames - reconstructed) / scale)
        return cls(flow, mean, deviation, scale, kernel)

    @property
    def reach(self):
        """Frames to either side that what is drawn depends on."""
        return N_EULER * self.flow.reach + CHANGE_FRAMES

    def standardise(self, reconstructed):
        """Reconstructed frames, and how much they change, as these are given to the flow.

        A network would hardly see the small changes in which a tone differs from music.
        """
        changes = np.abs(np.diff(reconstructed, axis=1, append=reconstructed[:, -1:]))
        smooth = uniform_filter1d(changes, CHANGE_FRAMES, axis=1, mode="nearest")
        frames = (reconstructed - self.mean) / self.deviation
        return np.concatenate([frames, np.log(smooth + LEAST_CHANGE) / 2 + 2], axis=-1)

    def filter_noise(self, white):
        """Noise to begin with, float32 (n, steps, height).

        Args:
            white: white noise that is NOISE_REACH wider on each side.
        """
        from scipy.signal import fftconvolve  # it takes a second to import

        return fftconvolve(white, self.kernel[np.newaxis], mode="valid", axes=(1, 2))

    def add(self, image, seed=0, first_frame=0):
        """An image with detail.

        Args:
            image: float32 (height, width, n_channels), in [0, 1], out of the autoencoder.
            seed: of the noise, which all channels share, so that it does not part them.
            first_frame: where it begins in a longer one, whose parts fit together.
        """
        frames = to_frames(image[np.newaxis])
        white = make_white_noise(seed, first_frame, frames.shape[1:])
        noise = self.filter_noise(white[np.newaxis])
        given = self.standardise(frames)
        lost = self.flow.draw(np.tile(noise, (len(frames), 1, 1)), given, n_euler=N_EULER)
        return np.clip(frames + self.scale * lost, 0, 1).transpose(2, 1, 0)

    def save(self, folder):
        """Write detail.npz."""
        from support.flow import save_learned

        save_learned(Path(folder) / DETAIL, self)

    @classmethod
    def load(cls, folder):
        """The Detail of a model folder; None if it was trained without, as a Prior is then, too.

        For errors see load_learned().
        """
        from support.flow import load_learned

        folder = Path(folder)
        if not any((folder / name).exists() for name in (DETAIL, PRIOR)):
            return None
        return load_learned(cls, folder / DETAIL, "run train.py --resume")


def to_frames(images):
    """The frames of images, (n, height, width, channels), as (n * channels, width, height)."""
    n, height, width, channels = images.shape
    return images.transpose(0, 3, 2, 1).reshape(n * channels, width, height)


def find_kernel(lost):
    """The kernel that makes white noise as alike from cell to cell as what is lost.

    Args:
        lost: float32 (n, steps, height), of variance 1.
    """
    size = 2 * NOISE_REACH + 1
    shape = [n + size for n in lost.shape[1:]]
    power = np.square(np.abs(fft.rfft2(lost, shape))).mean(axis=0)
    kernel = np.roll(fft.irfft2(np.sqrt(power), shape), (NOISE_REACH, NOISE_REACH), (0, 1))
    kernel = kernel[:size, :size]
    window = np.hanning(size + 2)[1:-1]
    kernel = kernel * np.outer(window, window)
    return (kernel / (np.linalg.norm(kernel) or 1)).astype(np.float32)


def make_white_noise(seed, first, shape):
    """Standard normal noise that goes on from part to part, NOISE_REACH wider on each side.

    Args:
        first: the frame that it begins with.
        shape: (n_frames, height) without the sides.
    Returns:
        float32 (n_frames + 2 * NOISE_REACH, height + 2 * NOISE_REACH).
    """
    n_frames, width = (size + 2 * NOISE_REACH for size in shape)
    blocks = range(first // NOISE_FRAMES, -(-(first + n_frames) // NOISE_FRAMES))
    noise = np.concatenate([make_block(seed, block, width) for block in blocks])
    return noise[first - blocks[0] * NOISE_FRAMES :][:n_frames]


@functools.lru_cache(maxsize=16)
def make_block(seed, block, width):
    """NOISE_FRAMES of noise."""
    rng = np.random.default_rng((seed, block))
    return rng.standard_normal((NOISE_FRAMES, width), np.float32)
