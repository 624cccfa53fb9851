"""A piece in few numbers, to compare music by: mel bands over a few frames.

In:  images, float32 (n, height, width, n_channels), in [0, 1].
Out: float32 (n, n_steps, n_bands), in [0, 1].

    bands = extract_bands(images, sample_rate=22050)
"""

import functools

import librosa
import numpy as np

N_BANDS = 32
FRAMES_PER_STEP = 4


def extract_bands(images, sample_rate):
    """The means of images over mel bands, steps of FRAMES_PER_STEP frames, and channels.

    Args:
        images: float32 (n, height, width, n_channels), in [0, 1], an array or Pieces.
        sample_rate: Hz; the rows reach from 0 to half of it.
    Returns:
        float32 (n, max(1, width // FRAMES_PER_STEP), n_bands), in [0, 1]; n_bands is N_BANDS, or
        a quarter of the height if that is less.
    """
    height, width = images.shape[1:3]
    n_bands, n_steps = min(N_BANDS, height // 4), max(1, width // FRAMES_PER_STEP)
    weights = make_weights(sample_rate, height, n_bands)
    bands = np.empty((len(images), n_steps, n_bands), np.float32)
    edges = np.arange(n_steps) * FRAMES_PER_STEP
    for index in range(len(images)):
        rows = weights @ images[index].mean(axis=-1)  # (n_bands, width)
        sums = np.add.reduceat(rows, edges, axis=1)
        bands[index] = sums.T / np.diff([*edges, width])[:, np.newaxis]
    return bands


@functools.cache
def make_weights(sample_rate, height, n_bands):
    """What each band takes of each row, float32 (n_bands, height); each band's sum is 1."""
    weights = librosa.filters.mel(sr=sample_rate, n_fft=2 * height, n_mels=n_bands, norm=None)
    return weights[:, :-1] / np.maximum(weights[:, :-1].sum(axis=1, keepdims=True), 1e-6)
