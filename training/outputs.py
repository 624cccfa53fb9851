"""What a run leaves beside its weights.

In:  its windows, what the model makes of them, its history.
Out: model/history.csv, history.png, tracks.npz, split.json; a fingerprint; latents.

    tracks, latents = describe_tracks(autoencoder, windows, keys, 22050)
"""

import hashlib
import json

import numpy as np

from support import dataset
from support.bands import extract_bands
from support.command_line import show_progress
from support.dataset import PARTS
from support.files import write_csv, write_json
from support.tracks import TrainingTracks

MAX_VARIATION = 0.06  # of a track's time and frequencies, as a logarithm: a semitone


def make_fingerprint(parts, min_max_values):
    """A checksum of the pieces that are trained on and held out, and of their decibel ranges."""
    keys = parts["train"] + parts["valid"]
    chosen = dataset.select_min_max_values(min_max_values, keys)
    ranges = [[key, sorted(entry.items())] for key, entry in zip(keys, chosen, strict=True)]
    text = json.dumps([len(parts["train"]), ranges])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def describe_tracks(autoencoder, windows, keys, sample_rate):
    """(the TrainingTracks of Windows; their latents, a list of float32 (steps, d)).

    Args:
        keys: str (n,), of the windows' pieces.
    """
    firsts = np.unique(windows.first)
    latents, bands = [], []
    for first in show_progress(firsts, len(firsts), "tracks"):
        encoded, images = zip(*encode_track(autoencoder, windows, first), strict=True)
        latents.append(np.concatenate(encoded))
        bands.append(np.concatenate([extract_bands(image, sample_rate) for image in images]))
    tracks = np.array([dataset.get_track(keys[first]) for first in firsts])
    genres = np.array([*map(dataset.get_genre, tracks)])
    counts = np.array([*map(len, bands)])
    bands = np.rint(255 * np.concatenate(bands)).astype(np.uint8)
    return TrainingTracks(bands, counts, windows.peaks[firsts], tracks, genres), latents


def encode_tracks(autoencoder, windows, n_variations=0, seed=0):
    """The latents of the tracks of Windows, a list of float32 (steps, d).

    Args:
        n_variations: of each track, in place of what it is; see encode_track.
        seed: of these.
    """
    firsts = np.repeat(np.unique(windows.first), max(1, n_variations))
    rng = np.random.default_rng(seed) if n_variations else None
    return [
        np.concatenate([latents for latents, _ in encode_track(autoencoder, windows, first, rng)])
        for first in show_progress(firsts, len(firsts), "tracks")
    ]


def encode_track(autoencoder, windows, first, rng=None):
    """Yield the latents of a track and their image, stretch by stretch.

    Args:
        first: index of the track's first piece.
        rng: of how it is varied: a little faster or slower, higher or lower, and where its steps
            begin; None: not at all.
    Yields:
        (float32 (steps, d), float32 (height, any, n_channels)).
    """
    step, offset, speed, pitch = autoencoder.frames_per_step, 0, 1.0, 1.0
    n_frames = windows.shape[2] * (windows.stop[first] - windows.first[first])
    if rng:
        offset = rng.integers(min(step, n_frames))
        speed, pitch = np.exp(rng.uniform(-MAX_VARIATION, MAX_VARIATION, 2))
    n_frames = max(1, round((n_frames - offset) / speed))
    for before, start, stop, after in autoencoder.plan_stretches(-(-n_frames // step)):
        frames = np.arange(before * step, min(after * step, n_frames))
        image = windows.cut_track(first, offset + speed * frames, pitch)
        latents = autoencoder.encode(image[np.newaxis])[0][start - before : stop - before]
        yield latents, image[:, (start - before) * step : (stop - before) * step]


def save_all(folder, autoencoder, settings, callbacks, tracks, flows, parts):
    """Write a model folder, with the history of a run's callbacks."""
    from training.callbacks import History, plot_history

    (rows,) = (callback.rows for callback in callbacks if isinstance(callback, History))
    write_csv(folder / "history.csv", rows[0].keys(), [row.values() for row in rows])
    plot_history(folder / "history.png", rows)
    autoencoder.save(folder)
    settings.save(folder / "settings.json")
    tracks.save(folder)
    for learned in filter(None, flows):
        learned.save(folder)
    save_split(folder / "split.json", parts)


def save_split(path, parts):
    """Write split.json: the tracks of each part."""
    write_json(path, {part: sorted({*map(dataset.get_track, parts[part])}) for part in PARTS})
