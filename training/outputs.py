"""What a run leaves beside its weights.

In:  its pieces, their latents and decibel ranges, its history.
Out: model/history.csv, history.png, latents.npz, prior.npz, split.json; the Texture; a
     fingerprint.

    pieces, followers = encode_pieces(autoencoder.encode, windows, keys, min_max_values, 22050)
"""

import contextlib
import hashlib
import json

import numpy as np

from generation.prior import Followers, Prior, TrainingPieces
from support import dataset
from support.bands import extract_bands
from support.errors import UserError
from support.files import write_csv, write_json
from support.texture import measure_texture
from training.splits import PARTS

TEXTURE_IMAGES = 100  # that the missing texture is measured on
NEXT_BATCH_SIZE = 64  # windows half a piece behind others, encoded together


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


def encode_pieces(encode, windows, keys, min_max_values, sample_rate):
    """The TrainingPieces, and their Followers.

    Args:
        encode: images, float32 (n, height, width, channels), to latents, float32 (n, d).
        windows: the Windows of all pieces.
    """
    latents = encode(windows.images)
    ranges = dataset.list_ranges(dataset.select_min_max_values(min_max_values, keys))
    genres = np.array([dataset.get_genre(key) for key in keys])
    bands = np.rint(255 * extract_bands(windows.images, sample_rate)).astype(np.uint8)

    exist = np.array(windows.has_next)
    followers = Followers(exist, np.zeros_like(latents), np.zeros_like(ranges))
    followed = np.flatnonzero(exist)
    for start in range(0, len(followed), NEXT_BATCH_SIZE):
        batch = followed[start : start + NEXT_BATCH_SIZE]
        images, entries = zip(*map(windows.get_next, batch), strict=True)
        followers.latents[batch] = encode(np.stack(images))
        followers.ranges[batch] = dataset.list_ranges(entries)
    return TrainingPieces(latents, ranges, [*keys], genres, bands), followers


def save_prior(folder, pieces, followers):
    """Write prior.npz, the Prior over training pieces, unless they are too few or all alike."""
    with contextlib.suppress(UserError):
        Prior.fit(pieces, followers).save(folder)


def save_split(path, parts):
    """Write split.json: the tracks of each part."""
    write_json(path, {part: sorted({*map(dataset.get_track, parts[part])}) for part in PARTS})
