"""What a run leaves beside its weights.

In:  its pieces, their latents and decibel ranges, its history.
Out: model/history.csv, history.png, latents.npz, split.json; the Texture; a fingerprint.

    save_latents("model/latents.npz", keys, latents, min_max_values)
"""

import hashlib
import json

import numpy as np

from support import dataset
from support.files import write_arrays, write_csv, write_json
from support.texture import measure_texture
from training.splits import PARTS

TEXTURE_IMAGES = 100  # that the missing texture is measured on


def make_fingerprint(parts, min_max_values):
    """A checksum of the pieces that are trained on and held out, and of their decibel ranges."""
    keys = parts["train"] + parts["valid"]
    chosen = dataset.select_min_max_values(min_max_values, keys)
    ranges = [[key, sorted(entry.items())] for key, entry in zip(keys, chosen, strict=True)]
    text = json.dumps([len(parts["train"]), ranges])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def save_history(folder, callbacks):
    """Write history.csv and history.png, a row per epoch, of a run's callbacks."""
    from training.callbacks import History, plot_history

    (rows,) = (callback.rows for callback in callbacks if isinstance(callback, History))
    write_csv(folder / "history.csv", rows[0].keys(), [row.values() for row in rows])
    plot_history(folder / "history.png", rows)


def measure_missing_texture(reconstruct, images, min_max_values, settings):
    """The Texture that the reconstructions of some of these images lack.

    Args:
        reconstruct: images to images, float32 (n, height, width, channels).
        images: an array or Pieces.
        min_max_values: {"min": dB, "max": dB} of each.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, TEXTURE_IMAGES).astype(int))
    images, ranges = images[chosen], [min_max_values[index] for index in chosen]
    restore = settings.make_sound_generator(None).restore_log_spectrogram
    log_spectrograms, reconstructed = (
        [*map(restore, kind, ranges)] for kind in (images, reconstruct(images))
    )
    return measure_texture(log_spectrograms, reconstructed, settings.make_extractor())


def save_latents(path, keys, latents, min_max_values, bands):
    """Write latents.npz: latent, min, max, key, genre (top folder) and bands of every piece.

    Args:
        bands: of extract_bands.
    """
    write_arrays(
        path,
        bands=np.rint(255 * bands).astype(np.uint8),
        latent=latents,
        min=np.array([min_max_values[key]["min"] for key in keys]),
        max=np.array([min_max_values[key]["max"] for key in keys]),
        key=np.array(keys),
        genre=np.array([dataset.get_genre(key) for key in keys]),
    )


def save_split(path, parts):
    """Write split.json: the tracks of each part."""
    write_json(path, {part: sorted({*map(dataset.get_track, parts[part])}) for part in PARTS})
