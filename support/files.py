"""Files that are written whole or not at all, and read with care.

In:  paths, and what is to be written there.
Out: files; bytes, arrays and JSON values of a bounded size.

    write_atomically("notes.txt", b"the old content or the new, never half of it")
"""

import contextlib
import csv
import errno
import io
import json
import os
import re
import secrets
import shutil
import stat
import sys
import threading
from pathlib import Path

import numpy as np

from support.errors import TemporaryError, UserError

TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{16}\.tmp")  # of what is being written
SYSTEM_NAMES = "desktop.ini", "Thumbs.db", "lost+found"  # of files in every folder
NO_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP
LOCK = ".generative-music.lock"  # held by the run that writes a folder; marks it as ours


def write_atomically(path, data):
    """Write bytes to a path so that a reader sees the old content or all of the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:  # which does not name the file if the disk is full
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, values):
    """Write a dict as indented JSON, atomically."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def write_csv(path, columns, rows):
    """Write a table atomically: the names of its columns, and rows of as many values."""
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace"))


def write_arrays(path, **arrays):
    """Write an .npz file atomically."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_atomically(path, buffer.getbuffer())


@contextlib.contextmanager
def replace_together(folder, marker):
    """A new folder to write into; its files then replace those of the same names in `folder`.

    At every moment `folder` holds all of the old files, or all of the new, or has no `marker`.
    """
    folder = Path(folder)
    new = folder / f".{secrets.token_hex(8)}.tmp"
    new.mkdir(parents=True)
    try:
        yield new
        (folder / marker).unlink(missing_ok=True)
        for path in sorted(new.iterdir(), key=lambda path: path.name == marker):  # it comes last
            os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def make_figure(width, height):
    """A matplotlib Figure of some inches, whatever a user's matplotlibrc says."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(path, figure, dpi=120):
    """Write a matplotlib figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    write_atomically(path, buffer.getvalue())


def open_regular(path):
    """A file descriptor to read a regular file; it does not wait for a pipe or a device.

    Raises:
        TemporaryError: it cannot be opened.
        UserError: it is not a regular file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TemporaryError(f"cannot be opened ({reason})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UserError("is not a regular file")
    return descriptor


@contextlib.contextmanager
def reading(path, remedy, if_missing=None):
    """Read one of this program's files: what is wrong with it is said with the remedy.

    Args:
        if_missing: the remedy if it does not exist.
    Raises:
        FileNotFoundError: it does not exist.
        TemporaryError: it cannot be opened now.
        UserError: it is damaged, or of another version.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no {path}: {if_missing or remedy}")
    try:
        os.close(open_regular(path))  # whatever reads it next would wait for a pipe
        yield
    except TemporaryError as error:
        raise TemporaryError(f"{path} {error}") from error
    except Exception as error:  # numpy, zipfile, pickle, h5py and Keras raise many kinds
        reason = str(error).partition("\n")[0]
        text = f"{path} is damaged, or of another version ({reason}): {remedy}"
        raise UserError(text) from error


def read_file(path):
    """The bytes of a regular file; see open_regular()."""
    with open(open_regular(path), "rb") as file:
        return file.read()


def read_json(path):
    """The value in a JSON file; a UserError if it is damaged, or nested too deeply."""
    data = read_file(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not a JSON file: {error}") from error


def load_arrays(path):
    """{name: array} of an .npz file, without pickled objects, and of no more than its own size."""
    with open(open_regular(path), "rb") as file, np.load(file, allow_pickle=False) as arrays:
        if any(member.compress_type for member in arrays.zip.infolist()):
            raise UserError("it is compressed, and may be of any size")
        return dict(arrays)


def walk(root, **options):
    """os.walk, preceded by each folder's path below the root: "" or one that ends in /."""
    for folder, subfolders, names in os.walk(root, **options):
        below = Path(folder).relative_to(root).as_posix()
        yield "" if below == "." else f"{below}/", folder, subfolders, names


def remove_temporaries(*folders):
    """Delete what an interrupted run was writing in the folders."""
    for folder in folders:
        for path in Path(folder).glob(".*.tmp"):
            if not TEMPORARY_NAME.fullmatch(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def is_ours(folder, *products):
    """Whether this program wrote a folder: it has the lock, or one of the products.

    Args:
        products: paths below the folder that no other program writes.
    """
    return any(os.path.lexists(os.path.join(folder, name)) for name in (LOCK, *products))


@contextlib.contextmanager
def lock(folder, *products):
    """Keep a folder for this run alone, until it ends in whatever way; tidy up after earlier ones.

    Where the file system has no locks, as on some clusters, the user is told.

    Args:
        products: see is_ours.
    Raises:
        UserError: another run holds the folder, or it holds files of others alone.
    """
    import filelock

    path = Path(folder) / LOCK
    names = os.listdir(folder) if os.path.isdir(folder) else []
    others = [name for name in names if not name.startswith(".") and name not in SYSTEM_NAMES]
    if others and not is_ours(folder, *products):
        raise UserError(f"{folder} is not empty and was not written here: name another folder")
    Path(folder).mkdir(parents=True, exist_ok=True)
    how = {"fallback_to_soft": False, "preserve_lock_file": True}  # the file marks the folder
    file_lock = filelock.FileLock(path, timeout=0, **how)
    try:
        file_lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"another run is writing {folder}: wait for its end, or name another folder"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        text = f"note: the file system of {folder} has no locks: keep two runs out of it yourself"
        print(text, file=sys.stderr)
    try:
        remove_temporaries(folder)
        yield
    finally:
        file_lock.release()


class NativeSilence:
    """A context in which what C code writes to file descriptor 2 is dropped, in all threads."""

    def __init__(self):
        self._lock = threading.Lock()
        self._n_inside = 0
        self._kept = None

    def __enter__(self):
        with self._lock:
            self._n_inside += 1
            if self._n_inside == 1:
                self._kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, 2)
                os.close(null)

    def __exit__(self, *error):
        with self._lock:
            self._n_inside -= 1
            if self._n_inside == 0:
                os.dup2(self._kept, 2)
                os.close(self._kept)


native_silence = NativeSilence()  # one for all, since there is one file descriptor 2


def make_printable(text):
    """A text without what a terminal would obey or could not show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
