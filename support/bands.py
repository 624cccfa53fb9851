"""Music in few numbers, to compare it by: mel bands over a few frames.

In:  an image, float32 (height, width, n_channels), in [0, 1].
Out: float32 (n_steps, n_bands), in [0, 1].

    bands = extract_bands(image, sample_rate=22050)
"""

import functools

import librosa
import numpy as np

N_BANDS = 32
FRAMES_PER_BAND_STEP = 4


def extract_bands(image, sample_rate):
    """The means of an image over mel bands, steps of FRAMES_PER_BAND_STEP frames, and channels.

    Args:
        image: float32 (height, width, n_channels), in [0, 1].
        sample_rate: Hz; the rows reach from 0 to half of it.
    Returns:
        float32 (n_steps, n_bands), in [0, 1]; n_bands is N_BANDS, or a quarter of the height if
        that is less, but one at least. The last step may have fewer frames.
    """
    n_bands = max(1, min(N_BANDS, len(image) // 4))
    rows = make_weights(sample_rate, len(image), n_bands) @ image.mean(axis=-1)
    return pool_frames(rows, FRAMES_PER_BAND_STEP).T


def pool_frames(rows, count):
    """The means of each `count` frames of rows (..., n_frames); of fewer at the end."""
    starts = np.arange(0, rows.shape[-1], count)
    widths = np.diff([*starts, rows.shape[-1]])
    return np.add.reduceat(rows, starts, axis=-1) / widths


def find_mel_rows(height, sample_rate):
    """The rows of an image that lie even on the mel scale, as many as it has, for pictures."""
    frequencies = librosa.mel_frequencies(height, fmax=sample_rate / 2)
    rows = np.rint(frequencies / (sample_rate / 2) * height).astype(int)
    return np.minimum(rows, height - 1)


@functools.cache
def make_weights(sample_rate, height, n_bands):
    """What each band takes of each row, float32 (n_bands, height); each band's sum is 1."""
    weights = librosa.filters.mel(sr=sample_rate, n_fft=2 * height, n_mels=n_bands, norm=None)
    return weights[:, :-1] / np.maximum(weights[:, :-1].sum(axis=1, keepdims=True), 1e-6)
