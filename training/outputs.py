"""What a run leaves beside its weights.

In:  its windows, what the model makes of them, its history.
Out: model/history.csv, history.png, latents.npz, prior.npz, texture.json, split.json; a
     fingerprint.

    tracks = encode_tracks(autoencoder, windows, keys, 22050)
"""

import contextlib
import hashlib
import json

import numpy as np

from support import dataset
from support.bands import FRAMES_PER_STEP as BAND_FRAMES
from support.bands import extract_bands
from support.command_line import show_progress
from support.errors import UserError
from support.files import write_csv, write_json
from support.prior import Prior, TrainingTracks
from support.texture import measure_texture
from training.splits import PARTS

TEXTURE_PIECES = 100  # that the missing texture is measured on


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


def measure_missing_texture(reconstruct, windows, settings):
    """The Texture that the reconstructions of some of these Windows' pieces lack.

    Args:
        reconstruct: as Autoencoder.reconstruct.
    """
    n = windows.shape[0]
    chosen = np.unique(np.linspace(0, n - 1, TEXTURE_PIECES).astype(int))
    images = windows.cut(chosen)
    peaks = windows.peaks[chosen].astype(float)
    ranges = [{"min": peak - windows.top_db, "max": peak} for peak in peaks]
    restore = settings.make_sound_generator(None).restore_log_spectrogram
    log_spectrograms, reconstructed = (
        [*map(restore, kind, ranges)] for kind in (images, reconstruct(images)[0])
    )
    return measure_texture(log_spectrograms, reconstructed, settings.make_extractor())


def encode_tracks(autoencoder, windows, keys, sample_rate):
    """The TrainingTracks of Windows.

    Args:
        keys: str (n,), of the windows' pieces.
    """
    width, step = windows.shape[2], autoencoder.frames_per_step
    firsts = np.unique(windows.first)
    latents, bands, counts = [], [], []
    for first in show_progress(firsts, len(firsts), "tracks"):
        n_frames = width * (windows.stop[first] - first)
        n_steps = -(-n_frames // step)
        for before, start, stop, after in autoencoder.plan_stretches(n_steps):
            image = windows.cut_track(first, before * step, min(after * step, n_frames))
            latents.append(autoencoder.encode(image[np.newaxis])[0][start - before : stop - before])
            own = image[:, (start - before) * step : (stop - before) * step]
            bands.append(extract_bands(own, sample_rate))
        counts.append((n_steps, -(-n_frames // BAND_FRAMES)))
    tracks = [dataset.get_track(keys[first]) for first in firsts]
    n_steps, n_band_steps = np.array(counts).T
    return TrainingTracks(
        np.concatenate(latents),
        n_steps,
        np.rint(255 * np.concatenate(bands)).astype(np.uint8),
        n_band_steps,
        windows.peaks[firsts],
        np.array(tracks),
        np.array([*map(dataset.get_genre, tracks)]),
    )


def save_all(folder, autoencoder, settings, callbacks, texture, tracks, parts):
    """Write a model folder."""
    autoencoder.save(folder)
    settings.save(folder / "settings.json")
    save_history(folder, callbacks)
    texture.save(folder)
    tracks.save(folder)
    with contextlib.suppress(UserError):  # the tracks are too short, or all alike
        Prior.fit(tracks).save(folder)
    save_split(folder / "split.json", parts)


def save_split(path, parts):
    """Write split.json: the tracks of each part."""
    write_json(path, {part: sorted({*map(dataset.get_track, parts[part])}) for part in PARTS})
