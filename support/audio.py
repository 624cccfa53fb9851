"""Finding and reading audio files, damaged ones among them.

In:  a folder of files of any kind.
Out: which of them to read; their samples, float32, at one rate.

    for block in decode("my_music/song.mp3", sample_rate=22050, mono=True): ...
"""

import concurrent.futures
import contextlib
import errno
import itertools
import operator
import os
import stat
import threading
from pathlib import Path

import numpy as np

from support.dataset import SETTINGS_NAME
from support.errors import UserError
from support.files import is_ours, open_regular
from support.readers import read_blocks

FILE_RATES = (1000, 1_000_000)  # Hz; a header with another rate is not that of audio
MAX_SAMPLE = 1e10  # beyond it float32 spectrograms overflow
CUTOFF = 10  # Hz; what is slower is taken away, for a spectrogram shows it as a rumble
STILL = 1e-20  # of full scale; at less the filter is at rest: tiny numbers make it slow
LINK_S = 10.0  # seconds in which what a link leads to must answer
CANCELLED = 0.01  # of the channels' energy; with less in mono, the user is told


def list_audio_files(audio_files_dir):
    """All files below a folder that are not hidden.

    Links are followed; what several names lead to is listed once.

    Returns:
        ({path relative to the folder, with /: [bytes, time of change]}, {path: reason} of what
        cannot be used), both sorted by path.
    """
    root = check_folder(audio_files_dir)
    stamps, refused, seen = {}, {}, set()

    def refuse_unreachable(error):
        if error.filename == os.fspath(root):
            raise error
        name = Path(error.filename).relative_to(root).as_posix()
        refused[name] = f"cannot be opened ({error.strerror})"

    def look(path):
        """List what is at a path, and tell whether it is a folder that was not seen before."""
        try:
            status = find_status(path)
        except OSError as error:  # it is gone, or the disk has failed
            refuse_unreachable(error)
            return False
        name, place = Path(path).relative_to(root).as_posix(), (status.st_dev, status.st_ino)
        is_folder = stat.S_ISDIR(status.st_mode)
        if place in seen and (is_folder or os.path.islink(path)):
            return False
        seen.add(place)
        if stat.S_ISREG(status.st_mode):
            stamps[name] = [status.st_size, status.st_mtime_ns]
        elif not is_folder:
            refused[name] = "is not a regular file"
        return is_folder

    folders, links = [*filter(look, [os.fspath(root)])], []
    while folders:
        for folder, subfolders, names in os.walk(folders.pop(), onerror=refuse_unreachable):
            names = [name for name in names if not name.startswith(".")]
            names += [name for name in subfolders if not is_left_out(folder, name)]
            paths = [os.path.join(folder, name) for name in names]
            links += filter(os.path.islink, paths)
            walked = [path for path in paths if not os.path.islink(path) and look(path)]
            subfolders[:] = map(os.path.basename, walked)
        links.sort()
        while links and not folders:  # what they lead to may be listed by its own name
            folders += filter(look, [links.pop(0)])
    return dict(sorted(stamps.items())), dict(sorted(refused.items()))


def find_status(path):
    """os.stat of a path; an OSError, too, if a link leads to what does not answer in LINK_S."""
    status = os.lstat(path)
    if not stat.S_ISLNK(status.st_mode):
        return status
    found = concurrent.futures.Future()

    def look():
        try:
            found.set_result(os.stat(path))
        except OSError as error:
            found.set_exception(error)

    threading.Thread(target=look, daemon=True).start()
    if not concurrent.futures.wait([found], LINK_S).done:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), path)
    return found.result()


def check_folder(audio_files_dir):
    """The Path of a folder that exists and is not empty."""
    root = Path(audio_files_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder of audio")
    with os.scandir(root) as entries:
        if not any(entries):
            raise UserError(f"{root} is empty: give a folder of audio")
    return root


def is_left_out(folder, name):
    """Whether a folder in a folder of audio is hidden, or was written by this program."""
    return name.startswith(".") or is_ours(os.path.join(folder, name), SETTINGS_NAME)


def decode(file_path, sample_rate, mono, remarks=None):
    """Yield the samples of a file in blocks, mixed down and resampled.

    What a damaged file still holds is used.

    Args:
        sample_rate: Hz, of the result.
        mono: mix all channels down to one; else to left and right.
        remarks: a list, to which what the user should know of the file is appended.
    Yields:
        float32 (n,) or, in stereo, (2, n).
    Raises:
        UserError: the file is not audio, or holds no samples or some that are not finite.
    """
    remarks = [] if remarks is None else remarks
    is_empty = True
    with open(open_regular(file_path), "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise UserError("is empty")
        with contextlib.closing(read_blocks(file, remarks)) as blocks:
            signals = mix_blocks(blocks, mono, remarks)
            for file_rate, group in itertools.groupby(signals, key=operator.itemgetter(0)):
                parts = (signal for _, signal in group)
                for signal in resample(parts, file_rate, sample_rate, 1 if mono else 2):
                    is_empty = is_empty and not len(signal)
                    yield signal.T
    if is_empty:
        raise UserError("holds no samples")


def mix_blocks(blocks, mono, remarks):
    """Yield (sample rate, float32 (n,) or, in stereo, (n, 2)) of (sample rate, (n, n_channels)).

    What is slower than CUTOFF, a constant too, is taken away.
    """
    import scipy.signal

    kind, energy, mixed_energy = None, 0.0, 0.0
    for rate, block in blocks:
        if not FILE_RATES[0] <= rate <= FILE_RATES[1]:
            raise UserError(f"has a sample rate of {rate} Hz in its header")
        signal = mix(check_samples(block), mono)
        if mono and block.shape[1] > 1:
            energy += measure_energy(block)
            mixed_energy += measure_energy(signal[:, None])
        if kind != (rate, block.shape[1]):
            kind = rate, block.shape[1]
            b, a = np.float32(scipy.signal.butter(1, CUTOFF, "highpass", fs=rate))
            state = b[1] * signal[:1]  # as if the first sample had always been there
        signal, state = scipy.signal.lfilter(b, a, signal, axis=0, zi=state)
        state[np.abs(state) < STILL] = 0
        yield rate, signal
    if mixed_energy < CANCELLED * energy:
        remarks.append("has a left and a right that cancel each other out in mono: see --no-mono")


def measure_energy(block):
    """The mean energy of the channels, without a constant; every eighth sample is enough."""
    return len(block) * np.mean([channel.var(dtype=float) for channel in block[::8].T])


def resample(signals, rate, new_rate, n_channels):
    """Yield signals, (n,) or (n, 2), at another sample rate."""
    import soxr

    if rate == new_rate:
        yield from signals
        return
    resampler = soxr.ResampleStream(rate, new_rate, n_channels, "float32", quality="HQ")
    for signal in signals:
        yield resampler.resample_chunk(signal)
    yield resampler.resample_chunk(signal[:0], last=True)


def mix(block, mono):
    """(n, n_channels) as one channel, (n,), or as left and right, (n, 2)."""
    if mono:
        return average_channels(block)
    if block.shape[1] == 1:
        return np.repeat(block, 2, axis=1)
    return np.stack([average_channels(block[:, side::2]) for side in (0, 1)], axis=1)


def average_channels(block):
    """The mean of the columns, float32 (n,); a few times as fast as numpy's."""
    total = block[:, 0].copy()
    for channel in block.T[1:]:
        total += channel
    return total / np.float32(block.shape[1])


def check_samples(signal):
    """The signal, or a UserError if it holds NaN, infinity or absurd values."""
    if signal.size and not np.abs(signal).max() <= MAX_SAMPLE:  # false for NaN, too
        raise UserError(f"holds samples that are not finite, or beyond {MAX_SAMPLE:g}")
    return signal
