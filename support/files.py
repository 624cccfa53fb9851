"""Files that are written whole or not at all, and read without trusting them.

In:  paths and what is to lie there.
Out: files; bytes and JSON values of a bounded size.

    write_atomically("notes.txt", b"old content or new, never half of it")
"""

import contextlib
import csv
import io
import json
import os
import re
import secrets
import stat
import threading
from pathlib import Path

MAX_JSON_BYTES = 1 << 20
READ_BYTES = 1 << 16  # compared at a time
TEMPORARY_NAME = re.compile(r"\.[0-9a-f]{16}\.tmp")  # of a file that is being written
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # of a cell, in spreadsheet programs
LOCK = ".lock"  # a file in a folder, which the run that writes there holds


class TemporaryError(ValueError):
    """Trouble with a file that may be gone at the next run, which tries it again."""


class FileSet:
    """Files that are written under temporary names and then, all together, get their own.

    What a name holds is at every moment the old content or all of the new. Used in a with
    statement, which removes the temporary files after an error.

    Args:
        is_durable: whether this is to hold after a power failure, too, for which the new content
            has to reach the disk first.
    """

    def __init__(self, is_durable=True):
        self.is_durable = is_durable
        self._paths = {}  # {temporary: final}

    def add(self, path, *chunks):
        """Write bytes that are, one behind the other, to become a path's content."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
        self._paths[temporary] = path
        try:
            with open(temporary, "xb") as file:
                file.writelines(chunks)
        except OSError as error:  # which names no file where the disk is full
            raise OSError(error.errno, error.strerror, str(path)) from error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self._commit()
        finally:
            for temporary in self._paths:
                temporary.unlink(missing_ok=True)

    def _commit(self):
        for temporary in self._paths if self.is_durable else ():
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        for temporary, path in [*self._paths.items()]:
            os.replace(temporary, path)
            del self._paths[temporary]


def write_atomically(path, data):
    """Write bytes to a path so that a reader sees the old content or all of the new."""
    if not has_content(path, data):  # to read is quicker than to wait for the disk
        with FileSet() as files:
            files.add(path, data)


def has_content(path, data):
    """Whether a file holds these bytes; it is read as far as it does."""
    try:
        if os.path.getsize(path) != len(data):
            return False
        with open(path, "rb") as file:
            starts = range(0, len(data), READ_BYTES)
            return all(file.read(READ_BYTES) == data[i : i + READ_BYTES] for i in starts)
    except OSError:
        return False


def walk(root, **options):
    """os.walk, with the path of each folder below the root, "" or ending in /, in front."""
    for folder, subfolders, names in os.walk(root, **options):
        below = Path(folder).relative_to(root).as_posix()
        yield "" if below == "." else f"{below}/", folder, subfolders, names


def write_json(path, values):
    """Write a dict as indented JSON, atomically."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def write_csv(path, columns, rows):
    """Write a table atomically: the names of its columns, and its rows of as many values.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.
    """
    text = io.StringIO()
    csv.writer(text).writerows([columns, *(map(make_cell, row) for row in rows)])
    write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace"))


def make_cell(value):
    is_formula = isinstance(value, str) and value.startswith(FORMULA_STARTS)
    return f"'{value}" if is_formula else value


def write_figure(path, figure, dpi=120):
    """Write a matplotlib figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    write_atomically(path, buffer.getvalue())


def open_regular(path):
    """A file descriptor to read a regular file; it waits for no pipe and no device.

    Raises:
        TemporaryError: it cannot be opened.
        ValueError: it is something else.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TemporaryError(f"cannot be opened ({reason})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("is no regular file")
    return descriptor


def read_file(path, max_bytes):
    """The bytes of a regular file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is larger than max_bytes, no regular file, or cannot be read.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no {path}")
    try:
        with open(open_regular(path), "rb") as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes > max_bytes:
                raise ValueError(f"must have at most {max_bytes} bytes, got {n_bytes}")
            return file.read(max_bytes)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def read_json(path, max_bytes=MAX_JSON_BYTES):
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, too large, or nested too deeply.
    """
    data = read_file(path, max_bytes)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from error


def get_boot_id():
    """A text that is another once the machine was started anew, and lost what was not on disk."""
    path = Path("/proc/sys/kernel/random/boot_id")
    if path.exists():
        return path.read_text().strip()
    import psutil

    return str(round(psutil.boot_time()))


@contextlib.contextmanager
def lock(folder):
    """Keep a folder for this run alone, until it ends in whatever way.

    Raises:
        ValueError: another run has it.
    """
    import filelock

    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(Path(folder) / LOCK, timeout=0):
            yield
    except filelock.Timeout as error:
        raise ValueError(
            f"another run is writing {folder}: wait for its end, or name another folder"
        ) from error


class NativeSilence:
    """A context in which what C code writes to file descriptor 2 goes nowhere, in all threads."""

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
