"""Turn a folder of audio into min-max-normalised log spectrograms.

In:  any folder of audio that libsndfile reads, at any depth, rate and channel count.
Out: saved_data/spectrograms/<audio path>.<segment>.npy, settings.json, min_max_values.pkl.
     Interrupted at any moment, the same command goes on where it was.

    python preprocess.py --audio_files_dir my_music --saved_data saved_data
"""

import argparse
import collections
import contextlib
import errno
import functools
import itertools
import math
import os
import pickle
import sys
import zlib
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from support.arrays import format_array
from support.audio import check_folder, decode, is_at_or_below, list_audio_files
from support.command_line import exit_with_one_line, number
from support.dataset import (
    FORMAT_VERSION,
    MIN_MAX_VALUES_NAME,
    MIN_MAX_VALUES_SAVE_DIR,
    RANGES,
    SPECTROGRAMS_SAVE_DIR,
    Settings,
    check_frame_size,
    check_hop_length,
    check_key,
    check_settings,
    count_samples,
    get_settings_path,
    is_feature_name,
    load_settings,
    make_key,
)
from support.files import (
    LOCK,
    TEMPORARY_NAME,
    FileSet,
    TemporaryError,
    lock,
    read_json,
    walk,
    write_atomically,
    write_csv,
    write_json,
)
from support.journal import Journal, Track
from support.workers import connect, list_deaths, spread

FRAME_SIZE = 1024  # samples, librosa's n_fft
HOP_LENGTH = 256  # samples; a quarter of the frame, which phase recovery needs
DURATION = 2.97  # seconds, 256 frames at the defaults
SAMPLE_RATE = 22050  # Hz
MONO = True
SEGMENTS = "all"  # every piece of a track, or only the "first"
JOBS = -1  # processes; -1 takes every core

AUDIO_FILES_DIR = "data/demo/audio"
SAVED_DATA = "saved_data"

TOP_DB = 80.0  # dB kept below a piece's own peak

BLOCK_FRAMES = 256  # transformed at a time
MIN_POWER = 1e-10  # what librosa.amplitude_to_db takes silence for: -100 dB


class Loader:
    """Reads audio files at one sample rate, as mono or stereo, and cuts them into pieces."""

    def __init__(self, sample_rate, duration, mono):
        self.sample_rate = sample_rate
        self.duration = duration
        self.mono = mono
        self.n_samples = count_samples(sample_rate, duration)

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
        return decode(file_path, self.sample_rate, self.mono, duration)


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
        self.frame_size = check_frame_size(frame_size)
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
    """Writes features as .npy files and their min-max values as one pickle, beside a journal."""

    def __init__(self, feature_save_dir, min_max_values_save_dir):
        self.feature_save_dir = Path(os.path.abspath(feature_save_dir))  # a worker may be elsewhere
        self.min_max_values_path = Path(min_max_values_save_dir) / MIN_MAX_VALUES_NAME
        self.journal = Journal(Path(min_max_values_save_dir) / "tracks.jsonl")

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

    def forget(self):
        """Delete the journal and the min-max values, so that all features are made again."""
        for path in (self.min_max_values_path, self.journal.path):
            path.unlink(missing_ok=True)

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
        for prefix, folder, subfolders, names in walk(self.feature_save_dir, topdown=False):
            for path in (Path(folder, name) for name in subfolders):
                if path.is_symlink():
                    raise ValueError(f"{path} is a link to elsewhere: remove it, or name another")
                with contextlib.suppress(OSError):  # it is not empty
                    path.rmdir()
            for name in names:
                is_kept = not is_feature_name(name) or prefix + name in keys
                if not is_kept or TEMPORARY_NAME.fullmatch(name):
                    Path(folder, name).unlink(missing_ok=True)


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
        stamps, refused, unreachable = list_audio_files(audio_files_dir)
        origin = self._describe_origin(audio_files_dir)
        before, is_restarted = self.saver.journal.load(origin)
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
            self.saver.journal.save(origin, kept)
            self.saver.save_min_max_values(min_max_values)
        self.saver.remove_others(min_max_values.keys())
        tracks = {name: Track.skip(reason) for name, reason in refused.items()} | kept
        try:
            for name, track in self._process_all(audio_files_dir, waiting):
                tracks[name] = track
                min_max_values |= collect_min_max_values({name: track})
                self.saver.journal.add(name, track)
        finally:
            self.saver.save_min_max_values(min_max_values)
        if waiting:
            self.saver.remove_others(min_max_values.keys())  # what a worker that died left
        self.saver.journal.save(origin, tracks)
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
            return name, Track.skip(reason)

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
            return name, Track.skip(str(error))
        except MemoryError:
            return name, Track.skip("takes more memory than there is")
        except ValueError as error:
            return name, Track.skip(str(error), stamp)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                raise
            reason = "has a path that the folder of features cannot hold: rename it"
            return name, Track.skip(reason, stamp)
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


def collect_min_max_values(tracks):
    """{key: {"min": dB, "max": dB}} of {name: Track}.

    All is made here, since a pickle's bytes tell apart equal strings from other processes.
    """
    return {
        key: {"min": low, "max": high}
        for name, track in tracks.items()
        for key, (low, high) in zip(track.list_keys(name), track.ranges, strict=True)
    }


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


def remove_temporaries(*folders):
    """Delete the files that an interrupted run was writing in the folders."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if TEMPORARY_NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)


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
        remove_temporaries(saved_data, saver.journal.path.parent)
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


if __name__ == "__main__":
    import preprocess  # a module, which other processes can import too

    exit_with_one_line(
        preprocess.main, "what is done stays, and the same command goes on from there"
    )
