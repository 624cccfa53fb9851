"""From log spectrograms to the images that a network learns from, and back.

In:  log spectrograms in dB, float32 (n_bins, n_frames) or (n_bins, n_frames, n_channels).
Out: images in [0, 1], and the decibel range of each.

    image, min_max = to_image(log_spectrogram, MinMaxNormaliser(0, 1))
"""

import numpy as np

SILENCE_DB = -100.0  # librosa.amplitude_to_db of digital silence


def to_image(log_spectrogram, normaliser):
    """Normalise a log spectrogram; to_log_spectrogram goes back.

    Args:
        log_spectrogram: float32, dB.
    Returns:
        (image float32, in [0, 1]; {"min": dB, "max": dB}).
    """
    min_max = {"min": float(log_spectrogram.min()), "max": float(log_spectrogram.max())}
    return normaliser.normalise(log_spectrogram), min_max


def normalise_to(log_spectrogram, min_max):
    """The image of a log spectrogram in a given range; digital silence is at its floor.

    Args:
        log_spectrogram: float32, dB.
        min_max: {"min": dB, "max": dB}.
    Returns:
        float32, in [0, 1].
    """
    image = (log_spectrogram - min_max["min"]) / (min_max["max"] - min_max["min"])
    image[log_spectrogram <= SILENCE_DB] = 0
    return np.clip(image, 0, 1).astype(np.float32, copy=False)


def to_log_spectrogram(image, min_max, normaliser):
    """Undo to_image's normalisation: float32, dB."""
    return normaliser.denormalise(image, min_max["min"], min_max["max"])


def to_amplitude(log_spectrogram):
    """Undo decibels, and put the Nyquist row back.

    Args:
        log_spectrogram: float32 (n_bins, n_frames, n_channels), dB.
    Returns:
        float32 amplitude (n_channels, n_bins + 1, n_frames); digital silence is zero.
    """
    import librosa

    amplitude = librosa.db_to_amplitude(log_spectrogram)
    amplitude[log_spectrogram <= SILENCE_DB + 0.1] = 0
    amplitude = np.pad(amplitude, [(0, 1), (0, 0), (0, 0)])
    return np.moveaxis(amplitude, -1, 0).astype(np.float32)


def resize(image, shape):
    """Resample to (height, width); called with the old shape it goes back.

    A cubic spline through the running sum along each axis is read at the new cells' edges
    (a histospline): every cell keeps the mean of what it covers, so partials keep their level
    and pitch better than through interpolated samples. The spline is natural, so the image is
    flat towards its borders and a loud first frame does not overshoot.

    Args:
        image: float32 (n_bins, n_frames, ...), in [0, 1].
        shape: (height, width); None keeps the size.
    Returns:
        float32 (height, width, ...), in [0, 1].
    """
    if shape is None or tuple(shape) == image.shape[:2]:
        return image
    from scipy.interpolate import make_interp_spline

    for axis, new in enumerate(shape):
        old = image.shape[axis]
        if new == old:
            continue
        sums = np.cumsum(image, axis=axis, dtype=np.float64)
        sums = np.insert(sums, 0, 0, axis=axis)  # at the edges 0, 1, ..., old
        spline = make_interp_spline(np.arange(old + 1), sums, axis=axis, bc_type="natural")
        edges = np.linspace(0, old, new + 1)
        image = np.diff(spline(edges), axis=axis) * (new / old)
    return np.clip(image, 0, 1).astype(np.float32, copy=False)
