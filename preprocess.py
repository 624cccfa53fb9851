"""Turn a folder of audio into min-max-normalised log spectrograms.

In:  any folder of audio that libsndfile reads, at any depth, rate and channel count.
Out: saved_data/spectrograms/<audio path>.<segment>.npy, settings.json, min_max_values.pkl.
     Interrupted at any moment, the same command goes on where it was.

    python preprocess.py --audio_files_dir my_music --saved_data saved_data
"""

import argparse
import collections
import concurrent.futures
import contextlib
import errno
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import pickle
import re
import shutil
import signal as signals
import stat
import sys
import tempfile
import threading
import time
import warnings
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from storage.arrays import format_array, load_array, load_pickled_floats
from storage.files import (
    LOCK,
    TEMPORARY_NAME,
    FileSet,
    TemporaryError,
    get_boot_id,
    lock,
    make_printable,
    native_silence,
    open_regular,
    read_file,
    read_json,
    write_atomically,
    write_csv,
    write_json,
)

FRAME_SIZE = 1024  # samples, librosa's n_fft
HOP_LENGTH = 256  # samples; a quarter of the frame, which phase recovery needs
DURATION = 2.97  # seconds, 256 frames at the defaults
SAMPLE_RATE = 22050  # Hz
MONO = True
SEGMENTS = "all"  # every piece of a track, or only the "first"
JOBS = -1  # processes; -1 takes every core

AUDIO_FILES_DIR = "data/demo/audio"
SAVED_DATA = "saved_data"
SPECTROGRAMS_SAVE_DIR = "spectrograms"  # below SAVED_DATA
MIN_MAX_VALUES_SAVE_DIR = "min_max_values"  # below SAVED_DATA
MIN_MAX_VALUES_NAME = "min_max_values.pkl"

TOP_DB = 80.0  # dB kept below a piece's own peak
FORMAT_VERSION = 1  # of what lies in SAVED_DATA
RANGES = {  # of the settings
    "frame_size": (int, 4, 1 << 16),
    "hop_length": (int, 1, 1 << 15),
    "duration": (float, 0.01, 3600),
    "sample_rate": (int, 100, 768_000),
    "top_db": (float, 1, 1000),
}

BLOCK_FRAMES = 256  # transformed at a time
MIN_POWER = 1e-10  # what librosa.amplitude_to_db takes silence for: -100 dB
READ_BLOCK = 1 << 18  # samples decoded at a time, all channels together
FILE_RATES = (1000, 1_000_000)  # Hz; a header with another one is no audio's
MAX_SAMPLE = 1e10  # beyond it float32 spectrograms overflow
STREAMED_BYTES = 0x7FFF0000  # from here on a WAV's length means that its writer did not know it
CUT_LOG = re.compile(  # lines of libsndfile's log on a header that promises another length
    r"^ *(?:data|SSND|Data Size|riff)\b.*?(?P<promised>\d+) \(should be (?P<has>\d+)|"
    r"Calculated frame count (?P<has_frames>\d+) .*'ds64' chunk of (?P<frames>\d+)",
    re.MULTILINE,
)
MAX_TABLE_BYTES = 1 << 30  # of the min-max values: those of ten million pieces
MAX_PIECE_BYTES = 1 << 31  # of one spectrogram
MAX_NAME_BYTES = 255  # of a file; file systems end there
UNSAFE_KEY = re.compile(r"^$|\0|^[/\\]|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)")
FEATURE_NAME = re.compile(r"(?P<track>.+)\.\d{3,}\.npy", re.DOTALL)
DASK_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss)://)?[^/\s]+:\d+")
# glibc gives freed arrays back to the system, which clears the next ones page by page: a third of
# a worker's time. Other systems do not read these.
WORKER_ENVIRONMENT = {  # bytes
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
}
PARENT_CHECK_S = 0.2  # seconds between a worker's looks at whether its run goes on
CONNECT_S = 10  # seconds that a Dask scheduler, and then its workers, may take to answer
NO_ROOM = ": make room there and start again, what is done stays"
NO_WRITING = ": allow this, or name another folder"
REMEDIES = {  # of what the operating system refuses
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EROFS: NO_WRITING,
    errno.EACCES: NO_WRITING,
    errno.EPERM: NO_WRITING,
}
Settings = collections.namedtuple(
    "Settings", "format_version sample_rate frame_size hop_length duration mono segments top_db"
)


class Loader:
    """Reads audio files at one sample rate, as mono or stereo, and cuts them into pieces."""

    def __init__(self, sample_rate, duration, mono):
        self.sample_rate = check_at_least("sample_rate", sample_rate, 1)
        self.duration = duration
        self.mono = mono
        self.n_samples = check_at_least(
            "duration * sample_rate", int(round(duration * sample_rate, 6)), 1
        )

    def load(self, file_path):
        """The first `duration` seconds of a file.

        Returns:
            float32 (n_samples,) or, in stereo, (2, n_samples); shorter where the file is.
        Raises:
            ValueError: the file is no audio, is damaged, or holds samples that are no numbers.
        """
        blocks = [*self._decode(file_path, self.duration)]
        return np.concatenate(blocks, axis=-1)[..., : self.n_samples]

    def load_whole(self, file_path):
        """All of a file, as load() returns it."""
        return np.concatenate([*self._decode(file_path)], axis=-1)

    def load_pieces(self, file_path):
        """Yield all consecutive pieces of a file, signals as load() returns them.

        The last one may be shorter; it is left out below half of `duration`, unless alone. What
        is wrong with a file may show, as load()'s ValueError, only after its last piece.
        """
        blocks, n_held, n_pieces = [], 0, 0
        for block in self._decode(file_path):
            blocks.append(block)
            n_held += block.shape[-1]
            if n_held < self.n_samples:
                continue
            signal = np.concatenate(blocks, axis=-1)
            for start in range(0, n_held - self.n_samples + 1, self.n_samples):
                n_pieces += 1
                yield signal[..., start : start + self.n_samples]
            n_held %= self.n_samples
            blocks = [signal[..., signal.shape[-1] - n_held :]]
        if n_pieces == 0 or 2 * n_held >= self.n_samples:
            yield np.concatenate(blocks, axis=-1)

    def load_piece(self, file_path, index):
        """One of the pieces, or None where there are fewer."""
        return next(itertools.islice(self.load_pieces(file_path), index, None), None)

    def _decode(self, file_path, duration=None):
        """Yield `duration` seconds (None: all) in blocks, mixed down, at the loader's rate."""
        import soundfile
        import soxr

        descriptor = open_regular(file_path)
        try:
            if os.fstat(descriptor).st_size == 0:
                raise ValueError("is empty")
            with native_silence:
                sound_file = soundfile.SoundFile(descriptor, closefd=False)
            with sound_file:
                check_header(sound_file)
                resampler = None
                if sound_file.samplerate != self.sample_rate:
                    resampler = soxr.ResampleStream(
                        sound_file.samplerate, self.sample_rate, 1 if self.mono else 2, "float32",
                        quality="HQ",
                    )  # fmt: skip
                for block, is_last in read_blocks(sound_file, duration):
                    signal = self._mix(block)
                    if resampler:
                        signal = resampler.resample_chunk(signal, last=is_last)
                    yield check_samples(signal).T
        except (soundfile.LibsndfileError, TypeError) as error:
            reason = str(getattr(error, "error_string", "") or "headerless audio").rstrip(".")
            raise ValueError(f"not readable as audio ({reason})") from error
        finally:
            os.close(descriptor)

    def _mix(self, block):
        # (n, n_channels) -> (n,) or (n, 2); the even channels are left, the odd ones right
        if self.mono:
            return average_channels(block)
        if block.shape[1] == 1:
            return np.repeat(block, 2, axis=1)
        return np.stack([average_channels(block[:, side::2]) for side in (0, 1)], axis=1)


def check_header(sound_file):
    """Raise ValueError where an open file's header cannot be that of audio."""
    least, most = FILE_RATES
    if not least <= sound_file.samplerate <= most:
        raise ValueError(f"has a sample rate of {sound_file.samplerate} Hz in its header")
    if sound_file.frames == 0:
        raise ValueError("holds no samples")


def read_blocks(sound_file, duration):
    """Yield (float32 (n, n_channels), whether it is the last) of an open file.

    A header may promise more than the file holds: memory follows what is decoded.

    Raises:
        ValueError: there are fewer samples than the header promises.
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
    # libsndfile shortens a cut WAV without an error, and tells only its log.
    lengths = [
        (int(found["promised"] or found["frames"]), int(found["has"] or found["has_frames"]))
        for found in CUT_LOG.finditer(sound_file.extra_info)
    ]
    if n_read < n_wanted or any(has < promised < STREAMED_BYTES for promised, has in lengths):
        raise ValueError("is cut short: it ends before the length its header gives")


def average_channels(block):
    """The mean of the columns, float32 (n,); a few times as fast as numpy's."""
    total = block[:, 0].copy()
    for channel in block.T[1:]:
        total += channel
    return total / np.float32(block.shape[1])


def check_samples(signal):
    """The signal, or a ValueError where it holds what is no sample."""
    if signal.size and not np.abs(signal).max() <= MAX_SAMPLE:  # NaN is not below anything
        raise ValueError(f"holds samples that are not finite, or beyond {MAX_SAMPLE:g}")
    return signal


class Padder:
    """Lengthens the last axis of an array with numpy.pad."""

    def __init__(self, mode="constant"):
        self.mode = mode

    def left_pad(self, array, num_missing_items):
        """The array with num_missing_items new items in front of its last axis."""
        return self._pad(array, (num_missing_items, 0))

    def right_pad(self, array, num_missing_items):
        """The array with num_missing_items new items behind its last axis."""
        return self._pad(array, (0, num_missing_items))

    def _pad(self, array, widths):
        return np.pad(array, [(0, 0)] * (array.ndim - 1) + [widths], mode=self.mode)


class LogSpectrogramExtractor:
    """Computes log spectrograms, Nyquist row left out, floored top_db below their peak or not."""

    def __init__(self, frame_size, hop_length, *, top_db=TOP_DB):
        self.top_db = top_db
        self.frame_size = check_at_least("frame_size", frame_size, 4)
        if frame_size % 2:
            raise ValueError(f"frame_size must be even, got {frame_size}")
        self.hop_length = check_hop_length(hop_length, frame_size)

    def extract(self, signal):
        """The log spectrogram of a signal: librosa's amplitude_to_db of its stft's magnitude.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
        Returns:
            float32 (n_bins, n_frames) or (n_bins, n_frames, 2), dB re 1.0, floored top_db below
            the peak; n_bins = frame_size / 2, n_frames = 1 + n_samples // hop_length.
        """
        channels = [self._extract_channel(channel) for channel in np.atleast_2d(signal)]
        log_spectrogram = channels[0] if signal.ndim == 1 else np.stack(channels, axis=-1)
        if self.top_db is not None:
            floor = log_spectrogram.max() - self.top_db
            np.maximum(log_spectrogram, floor, out=log_spectrogram)
        return log_spectrogram

    def _extract_channel(self, signal):
        # librosa's takes 1.5 times as long, and 1.7 s to be imported: benchmarks/preprocessing.py
        import scipy.fft

        n_bins = self.frame_size // 2
        window = make_window(self.frame_size)
        padded = np.pad(signal, n_bins)  # frames are centered
        frames = sliding_window_view(padded, self.frame_size)[:: self.hop_length]
        log_spectrogram = np.empty((n_bins, len(frames)), np.float32)
        # Rows a power of two apart would share few lines of the cache when they become columns.
        power = np.empty((BLOCK_FRAMES, n_bins + 16), np.float32)[:, :n_bins]
        for start in range(0, len(frames), BLOCK_FRAMES):
            block = frames[start : start + BLOCK_FRAMES] * window
            spectrum = scipy.fft.rfft(block, axis=1, overwrite_x=True)[:, :n_bins]
            here = np.square(spectrum.real, out=power[: len(block)])
            here += np.square(spectrum.imag)
            log_spectrogram[:, start : start + len(block)] = here.T
        np.maximum(log_spectrogram, MIN_POWER, out=log_spectrogram)
        np.log(log_spectrogram, out=log_spectrogram)  # numpy's log10 is slower
        log_spectrogram *= np.float32(10 / math.log(10))
        return log_spectrogram


@functools.cache
def make_window(frame_size):
    """The periodic Hann window, float32 (frame_size,)."""
    phase = 2 * np.pi * np.arange(frame_size) / frame_size
    return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


class MinMaxNormaliser:
    """Maps an array onto [min_val, max_val] and back."""

    def __init__(self, min_val, max_val):
        if not min_val < max_val:
            raise ValueError(f"min_val must be below max_val, got {min_val} and {max_val}")
        self.min = min_val
        self.max = max_val

    def normalise(self, array):
        """The array's own range mapped onto [min_val, max_val]; a constant becomes min_val."""
        low, high = array.min(), array.max()
        if low == high:
            return np.full_like(array, self.min)
        normalised = array - low
        normalised /= high - low
        normalised *= self.max - self.min
        normalised += self.min
        return normalised

    def denormalise(self, array, original_min, original_max):
        """The inverse of normalise(), given the range that it was applied to."""
        unit = (array - self.min) / (self.max - self.min)
        return unit * (original_max - original_min) + original_min


class Saver:
    """Writes features as .npy files and their min-max values as one pickle.

    Beside the pickle lies a journal, tracks.jsonl: a line for the features' origin, and one for
    each track that is done, so that a run which was interrupted goes on where it was.
    """

    def __init__(self, feature_save_dir, min_max_values_save_dir):
        self.feature_save_dir = Path(os.path.abspath(feature_save_dir))  # a worker may be elsewhere
        self.min_max_values_path = Path(min_max_values_save_dir) / MIN_MAX_VALUES_NAME
        self.journal_path = Path(min_max_values_save_dir) / "tracks.jsonl"

    def save_feature(self, feature, key):
        """Write one array as feature_save_dir/key."""
        self.save_features([(key, feature)])

    def save_features(self, features):
        """Write (key, array) pairs; none appears before all of them are written.

        Returns:
            (bytes of one file, the checksum of each).
        """
        n_bytes, checksums = 0, []
        with FileSet(is_durable=False) as files:
            for key, feature in features:
                header, array = format_array(feature)
                n_bytes = len(header) + array.nbytes
                checksums.append(zlib.crc32(array, zlib.crc32(header)))
                files.add(self.feature_save_dir / check_key(key), header, array)
        return n_bytes, checksums

    def save_min_max_values(self, min_max_values):
        """Write {key: {"min": dB, "max": dB}}, sorted by key."""
        ordered = dict(sorted(min_max_values.items()))
        write_atomically(self.min_max_values_path, pickle.dumps(ordered, protocol=4))

    def load_tracks(self, origin):
        """The journal, as far as it is whole.

        Returns:
            ({name: Track}, empty where it has another origin; whether the machine was started
            anew since, so that features may not have reached its disk).
        """
        tracks, boot_id = {}, None
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            # Suppressed is the line that an interruption cut; what it told of is done again.
            first, *lines = read_file(self.journal_path, MAX_TABLE_BYTES).splitlines()
            found, boot_id = json.loads(first)
            for line in lines if found == json.loads(json.dumps(origin)) else ():
                name, tracks[name] = Track.parse(line)
        return tracks, boot_id != get_boot_id()

    def save_tracks(self, origin, tracks):
        """Write the journal anew, sorted by name."""
        lines = [json.dumps([origin, get_boot_id()])]
        lines += [track.format(name) for name, track in sorted(tracks.items())]
        write_atomically(self.journal_path, "".join(f"{line}\n" for line in lines).encode())

    def forget(self):
        """Delete the journal and the min-max values, so that all features are made again."""
        for path in (self.min_max_values_path, self.journal_path):
            path.unlink(missing_ok=True)

    def add_track(self, name, track):
        """Add a line to the journal."""
        with open(self.journal_path, "a") as file:
            file.write(track.format(name) + "\n")

    def holds(self, name, track, checks_content):
        """Whether all features of a Track are there, by their length or by their content."""
        try:
            for key, checksum in zip(track.list_keys(name), track.checksums, strict=True):
                path = os.path.join(self.feature_save_dir, key)
                if os.stat(path).st_size != track.n_bytes:
                    return False
                if checks_content and zlib.crc32(Path(path).read_bytes()) != checksum:
                    return False
        except OSError:
            return False
        return True

    def remove_others(self, keys):
        """Delete all features but those of the keys, and what interrupted runs left behind."""
        for folder, subfolders, names in os.walk(self.feature_save_dir, topdown=False):
            for path in (Path(folder, name) for name in subfolders):
                if path.is_symlink():
                    raise ValueError(f"{path} is a link to elsewhere: remove it, or name another")
                with contextlib.suppress(OSError):  # it is not empty
                    path.rmdir()
            below = Path(folder).relative_to(self.feature_save_dir).as_posix()
            prefix = "" if below == "." else f"{below}/"
            for name in names:
                is_kept = not is_feature_name(name) or prefix + name in keys
                if not is_kept or TEMPORARY_NAME.fullmatch(name):
                    Path(folder, name).unlink(missing_ok=True)


class Track(NamedTuple):
    """What came of an audio file."""

    stamp: list | None  # its size and time of change; None where it is to be tried again
    n_bytes: int  # of each of its features
    checksums: list  # of its features, CRC-32
    ranges: list  # of [min, max] of each of its features, dB
    reason: str  # why it was skipped, or ""

    def list_keys(self, name):
        return [make_key(name, segment) for segment in range(len(self.ranges))]

    def format(self, name):
        """The journal's line."""
        return json.dumps([name, *self])

    @classmethod
    def parse(cls, line):
        """(name, Track) of a line; a ValueError where it is no such line."""
        name, *fields = json.loads(line)
        track = cls(*fields)
        kinds = (list | None, int, list, list, str)
        is_track = isinstance(name, str) and all(map(isinstance, track, kinds))
        if not is_track or len(track.checksums) != len(track.ranges):
            raise ValueError("this is no line of a journal")
        for low, high in track.ranges:
            check_range({"min": low, "max": high})
        return name, track


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


class PreprocessingPipeline:
    """Load, pad, extract, normalise and save every audio file of a folder."""

    def __init__(
        self, loader, padder, extractor, normaliser, saver, *, segments=SEGMENTS, jobs=1,
        dask_scheduler=None,
    ):  # fmt: skip
        self.loader = loader
        self.padder = padder
        self.extractor = extractor
        self.normaliser = normaliser
        self.saver = saver
        self.segments = segments
        self.jobs = jobs
        self.dask_scheduler = dask_scheduler

    def preprocess(self, audio_files_dir):
        """Process every audio file below a folder that is not done yet.

        Features of files that changed or are gone are deleted.

        Returns:
            {path below the folder: Track}, for every file.
        Raises:
            OSError: a feature cannot be written; what was written before is of use.
        """
        stamps, tracks, unreachable = list_audio_files(audio_files_dir)
        origin = self._describe_origin(audio_files_dir)
        before, is_restarted = self.saver.load_tracks(origin)
        kept = {
            name: track for name, track in before.items()
            if track.stamp
            and (stamps.get(name) == track.stamp or is_at_or_below(name, unreachable))
            and self.saver.holds(name, track, checks_content=is_restarted)
        }  # fmt: skip
        min_max_values = collect_min_max_values(kept)
        waiting = {name: stamp for name, stamp in stamps.items() if name not in kept}
        if waiting or is_restarted or kept.keys() != before.keys():
            if kept:
                print(f"{len(kept)} files are done already, {len(waiting)} are new or changed")
            # First, so that no feature ever lies beside the range of another.
            self.saver.save_tracks(origin, kept)
            self.saver.save_min_max_values(min_max_values)
        self.saver.remove_others(min_max_values.keys())
        tracks |= kept
        try:
            for name, track in self._process_all(audio_files_dir, waiting):
                tracks[name] = track
                min_max_values |= collect_min_max_values({name: track})
                self.saver.add_track(name, track)
        finally:
            self.saver.save_min_max_values(min_max_values)
        if waiting:
            self.saver.remove_others(min_max_values.keys())  # what a worker that died left
        self.saver.save_tracks(origin, tracks)
        return tracks

    def _describe_origin(self, audio_files_dir):
        """All that the features depend on, but for the files."""
        parts = (self.loader, self.padder, self.extractor, self.normaliser)
        folder = os.path.realpath(audio_files_dir)
        return [FORMAT_VERSION, folder, self.segments, *map(vars, parts)]

    def _process_all(self, audio_files_dir, stamps):
        """Yield (name, Track) of each file as it is done, in no certain order."""
        if not stamps:
            return
        import joblib
        from tqdm import tqdm

        folder = os.path.abspath(audio_files_dir)  # a worker may be in another folder
        # Two at least, so that a file that kills its process is no more than one file lost.
        jobs = max(2, joblib.cpu_count()) if self.jobs == -1 else self.jobs
        waiting = dict(stamps)
        progress = tqdm(total=len(waiting), unit="file", disable=None)
        with progress, connect(self.dask_scheduler):
            while waiting:
                begun = []
                tasks = self._begin_tasks(folder, waiting, begun)
                try:
                    for name, track in spread(tasks, jobs):
                        del waiting[name]
                        progress.update()
                        yield name, track
                except list_deaths():
                    pass  # one of the files that were begun is to blame
                for name in [name for name in begun if name in waiting]:
                    yield self._process_alone(folder, name, waiting.pop(name))
                    progress.update()

    def _begin_tasks(self, folder, stamps, begun):
        """Yield a task for each file, and note its name, when joblib has room for one more."""
        import joblib

        for name, stamp in [*stamps.items()]:
            begun.append(name)
            yield joblib.delayed(self.process_file)(folder, name, stamp)

    def _process_alone(self, folder, name, stamp):
        """(name, Track) of a file that was in the works when a process died."""
        try:
            [result] = spread(self._begin_tasks(folder, {name: stamp}, []), 2)
            return result
        except list_deaths():
            reason = "ended the process that read it: it is damaged, or too large for the memory"
            return name, Track(None, 0, [], [], reason)

    def process_file(self, audio_files_dir, name, stamp=None):
        """Save the pieces of one file; (name, Track).

        Args:
            stamp: what the Track is to be stamped with, when there is no need to try it again.
        """
        ranges = []
        try:
            pieces = self._load(Path(audio_files_dir) / name)
            n_bytes, checksums = self.saver.save_features(
                (make_key(name, segment), self._process_piece(signal, ranges))
                for segment, signal in enumerate(pieces)
            )
        except TemporaryError as error:
            return name, Track(None, 0, [], [], str(error))
        except MemoryError:
            return name, Track(None, 0, [], [], "takes more memory than there is")
        except ValueError as error:
            return name, Track(stamp, 0, [], [], str(error))
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                raise
            reason = "has a path that the folder of features cannot hold: rename it"
            return name, Track(stamp, 0, [], [], reason)
        return name, Track(stamp, n_bytes, checksums, ranges, "")

    def _load(self, path):
        """Yield the pieces of a file."""
        every = self.segments == "all"
        pieces = self.loader.load_pieces(path) if every else [self.loader.load(path)]
        for segment, signal in enumerate(pieces):
            if segment == 0 and signal.shape[-1] < self.extractor.frame_size:
                raise ValueError(
                    f"is shorter than one frame: {signal.shape[-1]} of "
                    f"{self.extractor.frame_size} samples at {self.loader.sample_rate} Hz"
                )
            yield signal

    def _process_piece(self, signal, ranges):
        n_missing = self.loader.n_samples - signal.shape[-1]
        if n_missing > 0:
            signal = self.padder.right_pad(signal, n_missing)
        log_spectrogram = self.extractor.extract(signal)
        ranges.append([float(log_spectrogram.min()), float(log_spectrogram.max())])
        return self.normaliser.normalise(log_spectrogram)


def spread(tasks, jobs):
    """Yield the results of joblib tasks as they are done, whatever interrupts them, in silence."""
    import joblib

    parallel = joblib.Parallel(jobs, return_as="generator_unordered")
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")  # joblib warns where Ctrl-C or a full disk leaves results
        with delay_interrupts():  # which workers that start would answer with a traceback
            results = stack.enter_context(contextlib.closing(parallel(tasks)))
        yield from results


@contextlib.contextmanager
def delay_interrupts():
    """Let Ctrl-C wait; it never reaches processes and threads that start meanwhile."""
    if not hasattr(signals, "pthread_sigmask"):  # on Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it would start within, and end the waiting (Python 3.11)
    before = signals.pthread_sigmask(signals.SIG_BLOCK, {signals.SIGINT})
    try:
        yield
    finally:
        signals.pthread_sigmask(signals.SIG_SETMASK, before)


def follow_parent(parent):
    """End this process soon after its parent, which may have been killed, and not before."""
    signals.signal(signals.SIGINT, signals.SIG_IGN)  # Ctrl-C reaches the parent, too

    def watch():
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def collect_min_max_values(tracks):
    """{key: {"min": dB, "max": dB}} of {name: Track}.

    All is made here, since a pickle's bytes tell apart equal strings from other processes.
    """
    return {
        key: {"min": low, "max": high}
        for name, track in tracks.items()
        for key, (low, high) in zip(track.list_keys(name), track.ranges, strict=True)
    }


def list_deaths():
    """The exceptions that tell that a worker process died."""
    distributed = sys.modules.get("distributed")
    killed = [distributed.KilledWorker] if distributed else []
    return (concurrent.futures.BrokenExecutor, *killed)


def list_audio_files(audio_files_dir):
    """All files below a folder that are not hidden; links are left alone.

    Returns:
        ({path relative to the folder, with /: [bytes, time of change]}, {path: Track} of what
        cannot be used, {path} of the files and folders among that which cannot be reached now);
        the dicts are sorted by path.
    """
    root = check_folder(audio_files_dir)
    stamps, refused, unreachable = {}, {}, set()

    def refuse(path, reason):
        name = Path(path).relative_to(root).as_posix()
        refused[name] = Track(None, 0, [], [], reason)
        return name

    def refuse_unreachable(error):
        if error.filename == os.fspath(root):
            raise error
        unreachable.add(refuse(error.filename, f"cannot be opened ({error.strerror})"))

    for folder, subfolders, names in os.walk(root, onerror=refuse_unreachable):
        subfolders[:] = [name for name in subfolders if not is_left_out(folder, name)]
        names = [name for name in names if not name.startswith(".")]
        for path in (os.path.join(folder, name) for name in [*subfolders, *names]):
            try:
                status = os.lstat(path)
            except OSError as error:  # it is gone, or on a disk in trouble
                refuse_unreachable(error)
                continue
            name = Path(path).relative_to(root).as_posix()
            if stat.S_ISLNK(status.st_mode):
                refuse(path, "is a link")
            elif stat.S_ISDIR(status.st_mode):
                continue
            elif not stat.S_ISREG(status.st_mode):
                refuse(path, "is no regular file")
            elif UNSAFE_KEY.search(name):
                refuse(path, "has a name that leads elsewhere on some systems: rename it")
            else:
                stamps[name] = [status.st_size, status.st_mtime_ns]
    for name in [name for name in stamps if ".npy/" in name]:
        # The feature of one file would lie where the folder of another must.
        parents = (FEATURE_NAME.fullmatch(str(path)) for path in PurePosixPath(name).parents)
        if any(parent and parent["track"] in stamps for parent in parents):
            del stamps[name]
            refuse(root / name, "is in a folder named as the features of a file: rename it")
    return dict(sorted(stamps.items())), dict(sorted(refused.items())), unreachable


def check_folder(audio_files_dir):
    """The Path of a folder that is there, and not empty."""
    root = Path(audio_files_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: give one with --audio_files_dir")
    with os.scandir(root) as entries:
        if not any(entries):
            raise ValueError(f"{root} is empty: give a folder of audio with --audio_files_dir")
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


def check_at_least(name, value, least):
    """The value, or a ValueError where it is below `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def check_hop_length(hop_length, frame_size):
    """The hop length, or a ValueError where it leaves phase recovery too little overlap."""
    most = frame_size // 2
    if not 1 <= hop_length <= most:
        raise ValueError(f"hop_length must be in 1..{most} (half of frame_size), got {hop_length}")
    return hop_length


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
    LogSpectrogramExtractor(settings.frame_size, settings.hop_length)
    n_bytes = 4 * math.prod(get_piece_shape(settings))
    if n_bytes > MAX_PIECE_BYTES:
        raise ValueError(
            f"duration must be shorter, or hop_length longer: a spectrogram of {n_bytes / 1e9:.1f} "
            f"GB is above the limit of {MAX_PIECE_BYTES / 1e9:.1f} GB"
        )
    return settings


def get_piece_shape(settings):
    """(n_bins, n_frames, n_channels) of every spectrogram."""
    loader = Loader(settings.sample_rate, settings.duration, settings.mono)
    n_frames = 1 + loader.n_samples // settings.hop_length
    return settings.frame_size // 2, n_frames, 1 if settings.mono else 2


def check_key(key):
    """The key, or a ValueError where it is no path that stays below its folder on every system."""
    if UNSAFE_KEY.search(key):
        raise ValueError(f"{key!r} leads out of its folder")
    return key


def get_track(key):
    """The audio file of a key: all before `.<segment>.npy`."""
    return key.rsplit(".", 2)[0]


def is_feature_name(name):
    """Whether a file's name is that of a feature."""
    return name.endswith(".npy") and not name.startswith(".")


def get_segment(key):
    """The number of a key's piece in its audio file, an int."""
    return int(key.rsplit(".", 2)[1])


def list_keys(spectrograms_path):
    """Keys (paths relative to the folder, with /) of all .npy files below a folder.

    They are sorted by track, and in a track by segment, the thousandth behind the others.
    """
    root = Path(spectrograms_path)
    keys = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = Path(folder).relative_to(root)
        keys += [(below / name).as_posix() for name in names if is_feature_name(name)]
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


def get_min_max_path(saved_data):
    """Where the min-max values of a folder that preprocess.py wrote lie."""
    return Path(saved_data) / MIN_MAX_VALUES_SAVE_DIR / MIN_MAX_VALUES_NAME


def get_settings_path(saved_data):
    """Where the settings of a folder that preprocess.py wrote lie."""
    return Path(saved_data) / SPECTROGRAMS_SAVE_DIR / "settings.json"


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


def resize_spectrogram(spectrogram, shape):
    """Resample to (height, width); called with the old shape it goes back.

    A cubic spline through the running sum along each axis is read at the new cells' edges
    (a histospline): every cell keeps the mean of what it covers, so that partials keep their
    level and pitch better than through interpolated samples. The spline is natural, so that the
    image is flat towards its borders and a loud first frame does not overshoot.

    Args:
        spectrogram: float32 (n_bins, n_frames, n_channels), in [0, 1].
        shape: (height, width).
    Returns:
        float32 (height, width, n_channels), in [0, 1].
    """
    from scipy.interpolate import make_interp_spline

    for axis, new in enumerate(shape):
        old = spectrogram.shape[axis]
        if new == old:
            continue
        sums = np.cumsum(spectrogram, axis=axis, dtype=np.float64)
        sums = np.insert(sums, 0, 0, axis=axis)  # at the edges 0, 1, ..., old
        spline = make_interp_spline(np.arange(old + 1), sums, axis=axis, bc_type="natural")
        edges = np.linspace(0, old, new + 1)
        spectrogram = np.diff(spline(edges), axis=axis) * (new / old)
    return np.clip(spectrogram, 0, 1).astype(np.float32, copy=False)


def prepare_saved_data(saved_data, saver, audio_files_dir, settings, force):
    """Make the output folder ready; refuse to mix two data sets in it unless forced."""
    settings_path = get_settings_path(saved_data)
    source_path = saved_data / "source.json"
    source = {"audio_files_dir": os.path.realpath(audio_files_dir)}
    if settings_path.exists() and not force:
        if load_settings(settings_path) != settings:
            raise ValueError(f"{saved_data} holds features of other settings: add --force")
        if not source_path.exists() or read_json(source_path) != source:
            raise ValueError(f"{saved_data} holds features of another folder: add --force")
    if force:  # first, so that no feature ever lies beside settings of another
        saver.forget()
    write_json(source_path, source)
    write_json(settings_path, settings._asdict())


def check_is_ours(saved_data):
    """Raise ValueError where a folder holds anything, and was not written by this program."""
    if get_settings_path(saved_data).exists():
        return
    for _, _, names in os.walk(saved_data):
        if not {*names} <= {"source.json", LOCK} | {*filter(TEMPORARY_NAME.fullmatch, names)}:
            raise ValueError(f"{saved_data} is not empty and was not written here: name another")


@contextlib.contextmanager
def connect(dask_scheduler):
    """Let joblib spread its tasks over a Dask cluster; over this machine where it is None.

    Raises:
        ValueError: dask is not installed, or the scheduler does not answer, has no workers, or
            ends while it is needed.
    """
    import joblib

    if dask_scheduler is None:
        for name, value in WORKER_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        with joblib.parallel_config("loky", initializer=follow_parent, initargs=(os.getpid(),)):
            yield
        return
    if not DASK_ADDRESS.fullmatch(dask_scheduler):
        raise ValueError(
            f"--dask_scheduler must be as in tcp://10.0.0.1:8786, got {dask_scheduler}"
        )
    try:
        import distributed
    except ImportError as error:
        raise ValueError(
            "--dask_scheduler needs dask: pip install -r requirements-extra.txt"
        ) from error
    # What matters of its log is raised, too.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(dask_scheduler, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"--dask_scheduler {dask_scheduler} does not answer: start `dask scheduler` there"
        ) from error
    with client, joblib.parallel_config(make_dask_backend(client)):
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except OSError as error:
            raise ValueError(
                f"--dask_scheduler {dask_scheduler} has no workers: start `dask worker "
                f"{dask_scheduler}` on each machine"
            ) from error
        upload_modules(client)
        try:
            yield
        except concurrent.futures.CancelledError as error:
            raise ValueError(
                f"--dask_scheduler {dask_scheduler} is gone: start it again, and the same command "
                "goes on"
            ) from error


def make_dask_backend(client):
    """joblib's backend for Dask without two faults of joblib 1.6.

    It waits for ever for a task whose workers died one after the other; and while the cluster
    has a single thread, it does the work in this process instead.
    """
    from joblib._dask import DaskDistributedBackend

    class ReportingBackend(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs):
            return max(2, super().effective_n_jobs(n_jobs))

        def submit(self, func, callback=None):
            future = super().submit(func, callback)
            future.add_done_callback(
                lambda done: callback(done.exception()) if done.exception() else None
            )
            return future

    return ReportingBackend(client=client)


def upload_modules(client):
    """Give the workers of a Dask cluster, those to come included, this program's modules."""
    root = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        archive = shutil.make_archive(f"{folder}/storage", "zip", root, "storage")
        client.upload_file(archive)
    client.upload_file(str(root / "preprocess.py"))


def print_summary(tracks, skipped, settings):
    """Say how much was kept, and which files were skipped for which reason."""
    for name, reason in skipped:
        print(f"skipped {name!r}: {reason}", file=sys.stderr)
    n_pieces = sum(len(track.ranges) for track in tracks.values())
    hours = n_pieces * settings.duration / 3600
    print(f"{len(tracks)} files, {n_pieces} pieces, {hours:.2f} h of audio, {len(skipped)} skipped")
    for reason, count in collections.Counter(reason for _, reason in skipped).most_common():
        print(f"  {count} skipped: {reason}")


def run(
    audio_files_dir, saved_data, settings, jobs=JOBS, force=False, strict=False,
    dask_scheduler=None,
):  # fmt: skip
    """Preprocess a folder into saved_data, and say what came of it.

    Raises:
        ValueError: nothing was kept or, with strict, anything was skipped.
    """
    saved_data = Path(saved_data)
    loader = Loader(settings.sample_rate, settings.duration, settings.mono)
    extractor = LogSpectrogramExtractor(settings.frame_size, settings.hop_length)
    saver = Saver(saved_data / SPECTROGRAMS_SAVE_DIR, saved_data / MIN_MAX_VALUES_SAVE_DIR)
    pipeline = PreprocessingPipeline(
        loader, Padder(), extractor, MinMaxNormaliser(0, 1), saver,
        segments=settings.segments, jobs=jobs, dask_scheduler=dask_scheduler,
    )  # fmt: skip
    check_folder(audio_files_dir)
    check_is_ours(saved_data)
    with lock(saved_data):
        prepare_saved_data(saved_data, saver, audio_files_dir, settings, force)
        tracks = pipeline.preprocess(audio_files_dir)
        skipped = [(name, track.reason) for name, track in sorted(tracks.items()) if track.reason]
        write_csv(saved_data / "skipped.csv", ("path", "reason"), skipped)
    print_summary(tracks, skipped, settings)
    if not any(track.ranges for track in tracks.values()):
        raise ValueError(f"nothing to learn from in {audio_files_dir}: no audio file was kept")
    if strict and skipped:
        raise ValueError(f"{len(skipped)} files were skipped, and --strict forbids it")


def render_demo():
    """Render the built-in demo set, once."""
    if Path(AUDIO_FILES_DIR).is_dir():
        return
    import runpy

    script = Path(__file__).parent / "data" / "demo" / "prepare.py"
    print(f"no audio folder was given: rendering the demo set into {AUDIO_FILES_DIR}")
    runpy.run_path(str(script))["render"](AUDIO_FILES_DIR)


def number(kind, least, most=None):
    """An argparse type: an int or a float in [least, most]."""

    def parse(text):
        value = kind(text)
        if not least <= value <= (most if most is not None else value):
            limit = f"{least}..{most}" if most is not None else f"at least {least}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--audio_files_dir", default=AUDIO_FILES_DIR, help="folder of audio")
    add("--saved_data", default=SAVED_DATA, help="folder to write")
    for name, default, help_text in (
        ("frame_size", FRAME_SIZE, "samples, even"),
        ("hop_length", HOP_LENGTH, "samples, at most half of frame_size"),
        ("duration", DURATION, "seconds a piece"),
        ("sample_rate", SAMPLE_RATE, "Hz"),
    ):
        add(f"--{name}", type=number(*RANGES[name]), default=default, help=help_text)
    add("--mono", action=argparse.BooleanOptionalAction, default=MONO, help="mix down to one")
    add("--segments", choices=["all", "first"], default=SEGMENTS, help="pieces of each track")
    add("--jobs", type=number(int, -1), default=JOBS,
        help="processes, -1: every core; 1: in this process")  # fmt: skip
    add("--dask_scheduler", metavar="ADDRESS",
        help="spread the work over this Dask cluster, as in tcp://10.0.0.1:8786")  # fmt: skip
    add(
        "--force",
        action="store_true",
        help="do all again, and replace features of other settings or audio",
    )
    add("--strict", action="store_true", help="exit 1 when any file was skipped")
    return parser


def main():
    parser = get_parser()
    options = parser.parse_args()
    settings = Settings(
        FORMAT_VERSION, options.sample_rate, options.frame_size, options.hop_length,
        options.duration, options.mono, options.segments, TOP_DB,
    )  # fmt: skip
    try:
        check_settings(settings)
    except ValueError as error:
        parser.error(f"argument --{error}")
    if options.audio_files_dir == AUDIO_FILES_DIR:
        render_demo()
    run(
        options.audio_files_dir, options.saved_data, settings,
        options.jobs or 1, options.force, options.strict, options.dask_scheduler,
    )  # fmt: skip


def exit_with_one_line(main_function):
    """Run a script's main; expected errors become one line on stderr and exit status 1."""
    try:
        main_function()
    except (OSError, ValueError) as error:
        remedy = REMEDIES.get(getattr(error, "errno", None), "")
        sys.exit(f"error: {make_printable(' '.join(str(error).split()))}{remedy}")
    except KeyboardInterrupt:
        sys.exit("interrupted: what is done stays, and the same command goes on from there")
    finally:  # what is left is Python's own end, which is short, and tidies up
        signals.signal(signals.SIGINT, signals.SIG_IGN)


if __name__ == "__main__":
    import preprocess  # a module, which other processes can import too

    preprocess.exit_with_one_line(preprocess.main)
