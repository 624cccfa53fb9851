"""Finding and reading audio files, damaged ones among them.

In:  a folder of files of any kind.
Out: which of them to read; their samples, float32, at one rate.

    for block in decode("my_music/song.mp3", sample_rate=22050, mono=True): ...
"""

import math
import os
import re
import stat
from pathlib import Path, PurePosixPath

import numpy as np

from support.dataset import FEATURE_NAME, UNSAFE_KEY, get_settings_path
from support.errors import UserError
from support.files import native_silence, open_regular, walk

READ_BLOCK = 1 << 18  # samples decoded at a time, all channels together
FILE_RATES = (1000, 1_000_000)  # Hz; a header with another rate is not that of audio
MAX_SAMPLE = 1e10  # beyond it float32 spectrograms overflow
STREAMED_BYTES = 0x7FFF0000  # a WAV header with this length or more: its writer did not know it
CUT_LOG = re.compile(  # lines in libsndfile's log about a header that promises another length
    r"^ *(?:data|SSND|Data Size|riff)\b.*?(?P<promised>\d+) \(should be (?P<has>\d+)|"
    r"Calculated frame count (?P<has_frames>\d+) .*'ds64' chunk of (?P<frames>\d+)",
    re.MULTILINE,
)


def list_audio_files(audio_files_dir):
    """All files below a folder that are not hidden; links are left alone.

    Returns:
        ({path relative to the folder, with /: [bytes, time of change]}, {path: reason} of what
        cannot be used, {path} of those among them that cannot be reached now); the dicts are
        sorted by path.
    """
    root = check_folder(audio_files_dir)
    stamps, refused, unreachable = {}, {}, set()

    def refuse_unreachable(error):
        if error.filename == os.fspath(root):
            raise error
        name = Path(error.filename).relative_to(root).as_posix()
        refused[name] = f"cannot be opened ({error.strerror})"
        unreachable.add(name)

    for prefix, folder, subfolders, names in walk(root, onerror=refuse_unreachable):
        subfolders[:] = [name for name in subfolders if not is_left_out(folder, name)]
        names = [name for name in names if not name.startswith(".")]
        for name in [*subfolders, *names]:
            try:
                status = os.lstat(os.path.join(folder, name))
            except OSError as error:  # it is gone, or the disk has failed
                refuse_unreachable(error)
                continue
            name = prefix + name
            if fault := find_fault(name, status.st_mode):
                refused[name] = fault
            elif not stat.S_ISDIR(status.st_mode):
                stamps[name] = [status.st_size, status.st_mtime_ns]
    for name in [name for name in stamps if ".npy/" in name]:
        # One file's feature would need the name of another file's folder.
        matches = (FEATURE_NAME.fullmatch(str(path)) for path in PurePosixPath(name).parents)
        if any(match and match["track"] in stamps for match in matches):
            del stamps[name]
            refused[name] = "is in a folder named as the features of a file: rename it"
    return dict(sorted(stamps.items())), dict(sorted(refused.items())), unreachable


def find_fault(name, mode):
    """Why a file or folder cannot be used, by its name and mode, or None."""
    if stat.S_ISLNK(mode):
        return "is a link"
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode):
        return "is not a regular file"
    if UNSAFE_KEY.search(name):
        return "has a name that leads elsewhere on some systems: rename it"
    return None


def check_folder(audio_files_dir):
    """The Path of a folder that exists and is not empty."""
    root = Path(audio_files_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder: give one with --audio_files_dir")
    with os.scandir(root) as entries:
        if not any(entries):
            raise UserError(f"{root} is empty: give a folder of audio with --audio_files_dir")
    return root


def is_left_out(folder, name):
    """Whether a folder in a folder of audio is hidden, or was written by this program."""
    settings_path = get_settings_path(os.path.join(folder, name))
    return name.startswith(".") or os.path.exists(settings_path)


def is_at_or_below(name, folders):
    """Whether a path, or a folder that it is in, is among the folders."""
    return bool(folders) and any(
        str(path) in folders for path in (PurePosixPath(name), *PurePosixPath(name).parents)
    )


def decode(file_path, sample_rate, mono, duration=None):
    """Yield the samples of a file in blocks, mixed down and resampled.

    Args:
        sample_rate: Hz, of the result.
        mono: mix all channels down to one; else the even ones become left, the odd ones right.
        duration: seconds, from the start; None for all.
    Yields:
        float32 (n,) or, in stereo, (2, n).
    Raises:
        UserError: the file is not audio, is damaged, or holds samples that are not finite.
    """
    import soundfile
    import soxr

    descriptor = open_regular(file_path)
    try:
        if os.fstat(descriptor).st_size == 0:
            raise UserError("is empty")
        with native_silence:
            sound_file = soundfile.SoundFile(descriptor, closefd=False)
        with sound_file:
            check_header(sound_file)
            resampler = None
            if sound_file.samplerate != sample_rate:
                n_channels = 1 if mono else 2
                resampler = soxr.ResampleStream(
                    sound_file.samplerate, sample_rate, n_channels, "float32", quality="HQ"
                )
            for block, is_last in read_blocks(sound_file, duration):
                signal = mix(block, mono)
                if resampler:
                    signal = resampler.resample_chunk(signal, last=is_last)
                yield check_samples(signal).T
    except (soundfile.LibsndfileError, TypeError) as error:
        reason = str(getattr(error, "error_string", "") or "headerless audio").rstrip(".")
        raise UserError(f"not readable as audio ({reason})") from error
    finally:
        os.close(descriptor)


def check_header(sound_file):
    """Raise a UserError if an open file's header cannot be that of audio."""
    least, most = FILE_RATES
    if not least <= sound_file.samplerate <= most:
        raise UserError(f"has a sample rate of {sound_file.samplerate} Hz in its header")
    if sound_file.frames == 0:
        raise UserError("holds no samples")


def read_blocks(sound_file, duration):
    """Yield (float32 (n, n_channels), whether it is the last) of an open file.

    A header may promise more than the file holds, so memory grows with what is decoded.

    Raises:
        UserError: there are fewer samples than the header promises.
    """
    n_wanted = sound_file.frames
    if duration is not None:
        n_wanted = min(n_wanted, math.ceil(duration * sound_file.samplerate))
    n_block, n_read = max(1, READ_BLOCK // sound_file.channels), 0
    while n_read < n_wanted:
        with native_silence:
            block = sound_file.read(min(n_block, n_wanted - n_read), "float32", always_2d=True)
        if not len(block):
            break
        n_read += len(block)
        yield block, n_read == n_wanted
    # libsndfile shortens a cut WAV without an error, and says so only in its log.
    lengths = [
        (int(line["promised"] or line["frames"]), int(line["has"] or line["has_frames"]))
        for line in CUT_LOG.finditer(sound_file.extra_info)
    ]
    if n_read < n_wanted or any(has < promised < STREAMED_BYTES for promised, has in lengths):
        raise UserError("is cut short: it ends before the length its header gives")


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
