"""The folder that preprocess.py writes: settings, keys, spectrograms and min-max values.

In:  the folder, or what is to lie there.
Out: checked settings and keys, normalised spectrograms, ranges in dB.

    spectrogram = load_spectrogram("saved_data/spectrograms", "blues/blues.00000.wav.000.npy")
"""

import collections
import hashlib
import math
import os
import re
from pathlib import Path

import numpy as np

from support.arrays import load_array, load_pickled_floats
from support.files import read_file, read_json, walk

SPECTROGRAMS_SAVE_DIR = "spectrograms"  # below SAVED_DATA
MIN_MAX_VALUES_SAVE_DIR = "min_max_values"  # below SAVED_DATA
MIN_MAX_VALUES_NAME = "min_max_values.pkl"
FORMAT_VERSION = 1  # of what lies in SAVED_DATA
RANGES = {  # of the settings
    "frame_size": (int, 4, 1 << 16),
    "hop_length": (int, 1, 1 << 15),
    "duration": (float, 0.01, 3600),
    "sample_rate": (int, 100, 768_000),
    "top_db": (float, 1, 1000),
}
MAX_TABLE_BYTES = 1 << 30  # of the min-max values: those of ten million pieces
MAX_PIECE_BYTES = 1 << 31  # of one spectrogram
MAX_NAME_BYTES = 255  # of a file; file systems end there
UNSAFE_KEY = re.compile(r"^$|\0|^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)")
FEATURE_NAME = re.compile(r"(?P<track>.+)\.\d{3,}\.npy", re.DOTALL)
Settings = collections.namedtuple(
    "Settings", "format_version sample_rate frame_size hop_length duration mono segments top_db"
)


def load_settings(path):
    """The Settings in a settings.json.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is none of this version.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no settings at {path}: run preprocess.py first")
    try:
        settings = Settings(**read_json(path))
        if settings.format_version != FORMAT_VERSION:
            raise ValueError(f"format_version must be {FORMAT_VERSION}")
        return check_settings(settings)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no settings file of this version: run preprocess.py --force ({error})"
        ) from error


def check_settings(settings):
    """The Settings, or a ValueError that names the one out of its range."""
    for name, (kind, least, most) in RANGES.items():
        value = getattr(settings, name)
        kinds = (int, float) if kind is float else int
        if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} must be in {least}..{most}, got {value!r}")
    if not isinstance(settings.mono, bool):
        raise ValueError(f"mono must be true or false, got {settings.mono!r}")
    if settings.segments not in ("all", "first"):
        raise ValueError(f"segments must be all or first, got {settings.segments!r}")
    check_hop_length(settings.hop_length, check_frame_size(settings.frame_size))
    n_bytes = 4 * math.prod(get_piece_shape(settings))
    if n_bytes > MAX_PIECE_BYTES:
        raise ValueError(
            f"duration must be shorter, or hop_length longer: a spectrogram of {n_bytes / 1e9:.1f} "
            f"GB is above the limit of {MAX_PIECE_BYTES / 1e9:.1f} GB"
        )
    return settings


def get_piece_shape(settings):
    """(n_bins, n_frames, n_channels) of every spectrogram."""
    n_samples = count_samples(settings.sample_rate, settings.duration)
    n_frames = 1 + n_samples // settings.hop_length
    return settings.frame_size // 2, n_frames, 1 if settings.mono else 2


def check_at_least(name, value, least):
    """The value, or a ValueError where it is below `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def count_samples(sample_rate, duration):
    """Samples of a piece; a ValueError where there is none."""
    check_at_least("sample_rate", sample_rate, 1)
    return check_at_least("duration * sample_rate", int(round(duration * sample_rate, 6)), 1)


def check_frame_size(frame_size):
    """The frame size, or a ValueError where it is odd, or too small to have a hop."""
    check_at_least("frame_size", frame_size, 4)
    if frame_size % 2:
        raise ValueError(f"frame_size must be even, got {frame_size}")
    return frame_size


def check_hop_length(hop_length, frame_size):
    """The hop length, or a ValueError where it leaves phase recovery too little overlap."""
    most = frame_size // 2
    if not 1 <= hop_length <= most:
        raise ValueError(f"hop_length must be in 1..{most} (half of frame_size), got {hop_length}")
    return hop_length


def get_settings_path(saved_data):
    """Where the settings of a folder that preprocess.py wrote lie."""
    return Path(saved_data) / SPECTROGRAMS_SAVE_DIR / "settings.json"


def get_min_max_path(saved_data):
    """Where the min-max values of a folder that preprocess.py wrote lie."""
    return Path(saved_data) / MIN_MAX_VALUES_SAVE_DIR / MIN_MAX_VALUES_NAME


def make_key(track, segment):
    """The path of a piece's feature; a name too long for a file system is cut and made unique."""
    folder, slash, name = track.rpartition("/")
    suffix = f".{segment:03d}.npy"
    if 4 * len(name) + len(suffix) <= MAX_NAME_BYTES:  # by far, in any encoding
        return track + suffix
    encoded = os.fsencode(name)
    if len(encoded) + len(suffix) > MAX_NAME_BYTES:
        digest = "-" + hashlib.sha256(encoded).hexdigest()[:16]
        kept = encoded[: MAX_NAME_BYTES - len(suffix) - len(digest)]
        name = kept.decode("utf-8", "ignore") + digest
    return folder + slash + name + suffix


def check_key(key):
    """The key, or a ValueError where it is no path that stays below its folder on every system."""
    if UNSAFE_KEY.search(key):
        raise ValueError(f"{key!r} leads out of its folder")
    return key


def get_track(key):
    """The audio file of a key: all before `.<segment>.npy`."""
    return key.rsplit(".", 2)[0]


def get_segment(key):
    """The number of a key's piece in its audio file, an int."""
    return int(key.rsplit(".", 2)[1])


def is_feature_name(name):
    """Whether a file's name is that of a feature."""
    return name.endswith(".npy") and not name.startswith(".")


def list_keys(spectrograms_path):
    """Keys (paths relative to the folder, with /) of all .npy files below a folder.

    They are sorted by track, and in a track by segment, the thousandth behind the others.
    """
    root = Path(spectrograms_path)
    keys = []
    for prefix, _, subfolders, names in walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        keys += [prefix + name for name in names if is_feature_name(name)]
    keys.sort(key=lambda key: (get_track(key), len(key), key))
    if not keys:
        raise FileNotFoundError(f"no spectrograms in {root}: run preprocess.py first")
    return keys


def load_spectrogram(spectrograms_path, key):
    """One normalised spectrogram, float32 (n_bins, n_frames, n_channels), in [0, 1].

    Raises:
        ValueError: there is none, it is damaged, or it is no spectrogram.
    """
    path = Path(spectrograms_path) / check_key(key)
    try:
        spectrogram = load_array(path, check_header=check_spectrogram_header)
        if not (spectrogram.min() >= 0 and spectrogram.max() <= 1):  # false for NaN, too
            raise ValueError("is no finite spectrogram in [0, 1]")
    except ValueError as error:
        raise ValueError(f"{path} {error}: delete it and run preprocess.py again") from error
    if spectrogram.ndim == 2:
        spectrogram = np.expand_dims(spectrogram, -1)
    return spectrogram.astype(np.float32, copy=False)


def check_spectrogram_header(shape, dtype):
    is_spectrogram = len(shape) in (2, 3) and dtype.kind == "f" and dtype.itemsize <= 8
    if not is_spectrogram or not 0 < math.prod(shape) * dtype.itemsize <= MAX_PIECE_BYTES:
        raise ValueError("is no finite spectrogram in [0, 1]")


def load_min_max_values(path):
    """{key: {"min": dB, "max": dB}} as the Saver wrote it, or an older program with numpy scalars.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or holds anything else.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no min-max values at {path}: run preprocess.py first")
    data = read_file(path, MAX_TABLE_BYTES)
    try:
        values = load_pickled_floats(data)
        return {check_key(key): check_range(entry) for key, entry in values.items()}
    except ValueError as error:
        raise ValueError(
            f"{path} holds no min-max values ({error}): delete it and run preprocess.py again"
        ) from error


def check_range(entry):
    """{"min": float, "max": float}, or a ValueError where they are not finite and in order."""
    if entry.keys() != {"min", "max"} or not -math.inf < entry["min"] <= entry["max"] < math.inf:
        raise ValueError(f"a range must be a finite min <= max, got {entry}")
    return entry
