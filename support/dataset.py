"""The folder that preprocess.py writes: keys, spectrograms and min-max values.

In:  the folder.
Out: Features: keys, settings, and the decibel range of each spectrogram; spectrograms.

    features = Features.of("saved_data")
    spectrogram = load_spectrogram(features.path, features.keys[0])
"""

import collections
import dataclasses
import functools
import hashlib
import io
import os
import pickle
import re
import sys
import threading
from pathlib import Path

import numpy as np

from support.errors import UserError
from support.files import read_file, read_json, reading, walk
from support.settings import MAX_PIECE_BYTES, Settings
from support.spectrograms import resize

SPECTROGRAMS_SAVE_DIR = "spectrograms"  # below SAVED_DATA
SETTINGS_NAME = f"{SPECTROGRAMS_SAVE_DIR}/settings.json"  # below SAVED_DATA
MIN_MAX_VALUES_SAVE_DIR = "min_max_values"  # below SAVED_DATA
MIN_MAX_VALUES_NAME = "min_max_values.pkl"
MAX_NAME_BYTES = 255  # of a file name, on most file systems
PARTS = ("train", "valid", "test")  # of a split
FEATURE_NAME = re.compile(r"(?!\.).+\.\d{3,}\.npy", re.DOTALL)
PARSING = threading.Lock()  # Python 3.11's parser, which NumPy reads headers with, can fail beside
# another thread's ("AST constructor recursion depth mismatch")


def make_key(track, segment):
    """The path of a piece's feature; a name too long for a file system is cut and made unique."""
    folder, slash, name = track.rpartition("/")
    suffix = f".{segment:03d}.npy"
    if 4 * len(name) + len(suffix) <= MAX_NAME_BYTES:  # short enough in any encoding
        return track + suffix
    encoded = os.fsencode(name)
    if len(encoded) + len(suffix) > MAX_NAME_BYTES:
        digest = "-" + hashlib.sha256(encoded).hexdigest()[:16]
        kept = encoded[: MAX_NAME_BYTES - len(suffix) - len(digest)]
        name = kept.decode("utf-8", "ignore") + digest
    return folder + slash + name + suffix


def get_track(key):
    """The audio file of a key: all before `.<segment>.npy`."""
    return key.rsplit(".", 2)[0]


def group_by_track(keys):
    """{track: its keys}, both in the order of the keys."""
    tracks = {}
    for key in keys:
        tracks.setdefault(get_track(key), []).append(key)
    return tracks


def get_segment(key):
    """The index of a key's piece in its audio file."""
    return int(key.rsplit(".", 2)[1])


def get_genre(key):
    """The top folder of a key, "" if it has none."""
    return key.split("/")[0] if "/" in key else ""


def fail(error):
    raise error


def list_keys(spectrograms_path):
    """Keys (paths relative to the folder, with /) of all features below a folder.

    They are sorted by track, and within a track by segment: the thousandth comes last.
    """
    root = Path(spectrograms_path)
    keys = []
    for prefix, _, subfolders, names in walk(root, onerror=fail):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        keys += [prefix + name for name in names if FEATURE_NAME.fullmatch(name)]
    keys.sort(key=lambda key: (get_track(key), len(key), key))
    if not keys:
        raise FileNotFoundError(f"no spectrograms in {root}: run preprocess.py first")
    return keys


@dataclasses.dataclass(eq=False)
class Features:
    """What preprocess.py wrote; each file of it is read once, when it is asked for.

    Args:
        path: folder of the spectrograms.
        min_max_path: of the min-max values; None: that beside the folder.
    """

    path: Path
    min_max_path: Path | None = None

    def __post_init__(self):
        beside = self.path.parent / MIN_MAX_VALUES_SAVE_DIR / MIN_MAX_VALUES_NAME
        self.min_max_path = self.min_max_path or beside

    @classmethod
    def of(cls, saved_data):
        """Those in a folder that preprocess.py was told to write."""
        return cls(Path(saved_data) / SPECTROGRAMS_SAVE_DIR)

    @functools.cached_property
    def settings(self):
        """Their Settings."""
        return Settings.load(self.path / "settings.json")

    @functools.cached_property
    def keys(self):
        """See list_keys()."""
        return list_keys(self.path)

    @functools.cached_property
    def min_max_values(self):
        """{key: {"min": dB, "max": dB}}, of pieces that are gone, too, which is said."""
        values = load_min_max_values(self.min_max_path)
        n_missing = len(values.keys() - {*self.keys})
        if n_missing:
            print(f"note: {n_missing} pieces are missing in {self.path}", file=sys.stderr)
        return values

    @functools.cached_property
    def audio_folder(self):
        """The folder of audio that source.json names, or None.

        Raises:
            UserError: it is damaged.
        """
        path = self.path.parent / "source.json"
        if not path.exists():
            return None
        with reading(path, "run preprocess.py again"):
            folder = read_json(path).get("audio_files_dir")  # features of before may have another
        return folder and self.path.parent / folder

    def list_ranges(self, keys):
        """(min, max) of the keys, in dB, float32 (n, 2)."""
        chosen = select_min_max_values(self.min_max_values, keys)
        return np.array([[entry["min"], entry["max"]] for entry in chosen], np.float32)


def load_spectrogram(spectrograms_path, key):
    """One normalised spectrogram, float32 (n_bins, n_frames, n_channels), in [0, 1].

    Raises:
        FileNotFoundError: it is missing.
        UserError: it is damaged, or not a spectrogram.
    """
    path = Path(spectrograms_path) / key
    with reading(path, "delete it and run preprocess.py again", "run preprocess.py again"):
        spectrogram = load_array(path)
        is_real = spectrogram.ndim in (2, 3) and spectrogram.dtype.kind == "f"
        if not is_real or spectrogram.nbytes > MAX_PIECE_BYTES:
            raise UserError("it is not a spectrogram")
        if not (spectrogram.min() >= 0 and spectrogram.max() <= 1):  # false for NaN, too
            raise UserError("it is not a finite spectrogram in [0, 1]")
    return add_channel_axis(np.asarray(spectrogram).astype(np.float32, copy=False))


class Pieces:
    """Spectrograms on disk, read each time they are asked for; used like a list of them.

    Args:
        spectrograms_path: folder that holds them.
        target_shape: (height, width) to resize to; None keeps their own shape.
        keys: which ones, at least one.
    Raises:
        UserError: a file is damaged, or of another shape than the first; when it is read.
    """

    def __init__(self, spectrograms_path, target_shape, keys):
        self.spectrograms_path = spectrograms_path
        self.target_shape = target_shape
        self.keys = keys
        self.native_shape = load_spectrogram(spectrograms_path, keys[0]).shape
        self.shape = (len(keys), *(target_shape or self.native_shape[:2]), self.native_shape[2])

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        """One piece, float32 (height, width, channels), in [0, 1]."""
        spectrogram = load_spectrogram(self.spectrograms_path, self.keys[index])
        if spectrogram.shape != self.native_shape:
            raise UserError(
                f"{self.keys[index]} must have the first one's shape {self.native_shape}, "
                f"got {spectrogram.shape}: run preprocess.py --force"
            )
        return resize(spectrogram, self.target_shape)


def load_split(path):
    """The tracks of each part of a split, {part: {audio path}}.

    Args:
        path: JSON file of {"train": [...], "valid": [...], "test": [...]}, audio paths relative
            to their folder, each in one part at most.
    Raises:
        FileNotFoundError: it does not exist.
        UserError: it is not such a file.
    """
    remedy = 'it must be {"train": [...], "valid": [...], "test": [...]}'
    with reading(path, remedy, "--split names a file of tracks"):
        parts = read_json(path)
        if not {"train"} <= parts.keys() <= {*PARTS}:
            raise UserError(f"the parts must be {', '.join(PARTS)}, got {', '.join(parts)}")
        tracks = [track for part in parts.values() for track in part]
        if not all(isinstance(value, list) for value in parts.values()):
            raise UserError("parts must be lists")
        if not all(isinstance(track, str) for track in tracks):
            raise UserError("tracks must be paths")
        repeated = [track for track, count in collections.Counter(tracks).items() if count > 1]
        if repeated:
            raise UserError(f"{repeated[0]} is listed {tracks.count(repeated[0])} times")
    return {part: {*parts.get(part, ())} for part in PARTS}


def load_array(path):
    """The array in an .npy file, mapped, so that a header that lies takes no memory."""
    with PARSING, np.errstate(over="raise"):  # of the sides that a header gives
        return np.lib.format.open_memmap(path, mode="r")


def add_channel_axis(spectrogram):
    """(n_bins, n_frames) becomes (n_bins, n_frames, 1); three axes stay."""
    return np.expand_dims(spectrogram, -1) if spectrogram.ndim == 2 else spectrogram


class PlainUnpickler(pickle._Unpickler):  # in C, nine bytes can ask for gigabytes
    """Reads pickles of plain Python values, and calls nothing that a pickle names."""

    def find_class(self, module, name):
        raise UserError(f"it asks for {module}.{name}")


def load_min_max_values(path):
    """{key: {"min": dB, "max": dB}} as the Saver wrote it.

    Raises:
        FileNotFoundError: it does not exist.
        UserError: it is damaged, or holds anything else.
    """
    with reading(path, "delete it and run preprocess.py again", "run preprocess.py first"):
        values = PlainUnpickler(io.BytesIO(read_file(path))).load()
        return {
            key: {"min": float(entry["min"]), "max": float(entry["max"])}
            for key, entry in values.items()
        }


def select_min_max_values(min_max_values, keys):
    """The min-max values of the keys, in their order; a UserError names the first without."""
    for key in keys:
        if key not in min_max_values:
            raise UserError(f"{key} has no min-max values: run preprocess.py again")
    return [min_max_values[key] for key in keys]
