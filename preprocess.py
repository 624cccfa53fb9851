"""Turn a folder of audio into min-max-normalised log spectrograms.

In:  any folder of audio that libsndfile or FFmpeg reads, at any depth, rate and channel count.
Out: in saved_data, spectrograms/<audio path>.<segment>.npy, spectrograms/settings.json,
     min_max_values/min_max_values.pkl and tracks.jsonl, source.json, skipped.csv.
     Interrupted at any moment, the same command goes on where it was.

    python preprocess.py --audio_files_dir my_music --saved_data saved_data
"""

import argparse
import collections
import contextlib
import errno
import functools
import io
import itertools
import os
import pickle
import sys
from pathlib import Path

import librosa
import numpy as np

from support.audio import check_folder, decode, list_audio_files
from support.command_line import folder_path, make_parser, number, run_script
from support.dataset import (
    MIN_MAX_VALUES_NAME,
    MIN_MAX_VALUES_SAVE_DIR,
    SETTINGS_NAME,
    SPECTROGRAMS_SAVE_DIR,
    make_key,
)
from support.errors import TemporaryError, UserError
from support.files import lock, remove_temporaries, write_atomically, write_csv, write_json
from support.journal import Journal, Outcome, collect_min_max_values
from support.settings import FORMAT_VERSION, LIMITS, Settings, count_samples
from support.spectrograms import to_image
from support.workers import process_all

FRAME_SIZE = 1024  # samples, librosa's n_fft
HOP_LENGTH = 256  # samples; a quarter of the frame, which phase recovery needs
DURATION = 2.97  # seconds, 256 frames at the defaults
SAMPLE_RATE = 22050  # Hz
MONO = True
TOP_DB = 80.0  # dB kept below a piece's own peak
MOST_PADDING = 0.5  # share of the pieces; with more the user is told
JOBS = -1  # processes; -1 takes every core

AUDIO_FILES_DIR = "data/demo/audio"
SAVED_DATA = "saved_data"


class Loader:
    """Reads audio files at one sample rate, as mono or stereo, and cuts them into pieces."""

    def __init__(self, sample_rate, duration, mono):
        self.sample_rate = sample_rate
        self.duration = duration
        self.mono = mono
        self.n_samples = count_samples(sample_rate, duration)

    def load(self, file_path, remarks=None):
        """The first `duration` seconds of a file.

        Args:
            remarks: a list, to which what the user should know of the file is appended.
        Returns:
            float32 (n_samples,) or, in stereo, (2, n_samples); shorter if the file is.
        Raises:
            UserError: the file is not audio, or holds no samples or some that are not finite.
        """
        return next(self.load_pieces(file_path, remarks))

    def load_whole(self, file_path, remarks=None):
        """All of a file, as load() returns it."""
        return np.concatenate([*self._decode(file_path, remarks)], axis=-1)

    def load_pieces(self, file_path, remarks=None):
        """Yield all consecutive pieces of a file, signals as load() returns them.

        The last one may be shorter; below half of `duration` it is left out, unless it is the
        only one. load()'s UserError may come as late as after the last piece.
        """
        blocks, n_held, n_pieces = [], 0, 0
        for block in self._decode(file_path, remarks):
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

    def _decode(self, file_path, remarks):
        return decode(file_path, self.sample_rate, self.mono, remarks)


class Padder:
    """Lengthens the last axis of an array with numpy.pad."""

    def __init__(self, mode="constant"):
        self.mode = mode

    def right_pad(self, array, num_missing_items):
        """The array with num_missing_items new items behind its last axis."""
        widths = [(0, 0)] * (array.ndim - 1) + [(0, num_missing_items)]
        return np.pad(array, widths, mode=self.mode)


class LogSpectrogramExtractor:
    """Computes log spectrograms without their Nyquist row, floored top_db below the peak.

    Args:
        frame_size: samples, even.
        hop_length: samples, at most half of frame_size.
        top_db: dB; None leaves the floor out.
    """

    def __init__(self, frame_size, hop_length, *, top_db=TOP_DB):
        self.frame_size = frame_size
        self.hop_length = hop_length
        self.top_db = top_db

    def extract(self, signal, *, is_extended=False):
        """The log spectrogram of a signal.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
            is_extended: whether frame_size / 2 samples of what comes before it, and as many of
                what comes after it, are at its ends; else silence is put there.
        Returns:
            float32 (n_bins, n_frames) or (n_bins, n_frames, 2), dB re 1.0; n_bins is
            frame_size / 2, n_frames 1 + n_samples // hop_length, without what it is extended by.
        """
        stft = librosa.stft(
            signal, n_fft=self.frame_size, hop_length=self.hop_length, center=not is_extended
        )
        spectrogram = np.abs(stft[..., :-1, :])  # (..., n_bins, n_frames), Nyquist row left out
        log_spectrogram = librosa.amplitude_to_db(spectrogram, top_db=self.top_db)
        return log_spectrogram if signal.ndim == 1 else np.moveaxis(log_spectrogram, 0, -1)


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
        unit = (array - low) / (high - low)
        return unit * (self.max - self.min) + self.min

    def denormalise(self, array, original_min, original_max):
        """The inverse of normalise(), given the range that it was applied to."""
        unit = (array - self.min) / (self.max - self.min)
        return unit * (original_max - original_min) + original_min


def extend_pieces(signals, n_samples):
    """Yield each of a track's pieces with the last samples of the piece before it and the first
    ones of the piece after it, n_samples each, so that its first and last frames are whole.

    Before the first one and after the last one is silence.

    Args:
        signals: float32 (..., at least n_samples), the pieces in their order.
    """
    before, signal = None, None
    for after in itertools.chain(signals, [None]):
        if signal is not None:
            silence = np.zeros_like(signal[..., :n_samples])
            first = silence if before is None else before[..., -n_samples:]
            last = silence if after is None else after[..., :n_samples]
            yield np.concatenate([first, signal, last], axis=-1)
        before, signal = signal, after


def check_length(signal, frame_size):
    """Raise a UserError if a signal, (..., n_samples), is shorter than one frame."""
    n_samples = signal.shape[-1]
    if n_samples < frame_size:
        raise UserError(f"is shorter than one frame: {n_samples} of {frame_size} samples")


class Saver:
    """Writes features as .npy files and their min-max values as one pickle, beside a journal.

    Args:
        feature_save_dir, min_max_values_save_dir: folders.
    """

    def __init__(self, feature_save_dir, min_max_values_save_dir):
        self.feature_save_dir = Path(os.path.abspath(feature_save_dir))  # a worker may be elsewhere
        self.min_max_values_path = Path(min_max_values_save_dir) / MIN_MAX_VALUES_NAME
        journal_path = Path(min_max_values_save_dir) / "tracks.jsonl"
        self.journal = Journal(journal_path, self.feature_save_dir)

    def save_feature(self, feature, key):
        """Write one array as feature_save_dir/key, in float16: 80 dB are rounded by 0.02.

        Returns:
            bytes of the file.
        """
        buffer = io.BytesIO()
        np.save(buffer, feature.astype(np.float16))
        write_atomically(self.feature_save_dir / key, buffer.getbuffer())
        return len(buffer.getbuffer())

    def save_min_max_values(self, min_max_values):
        """Write {key: {"min": dB, "max": dB}}, sorted by key."""
        ordered = dict(sorted(min_max_values.items()))
        write_atomically(self.min_max_values_path, pickle.dumps(ordered, protocol=4))

    def save_source(self, audio_files_dir):
        """Write source.json: the folder of audio, relative to the one above feature_save_dir."""
        audio, saved_data = map(os.path.realpath, (audio_files_dir, self.feature_save_dir.parent))
        with contextlib.suppress(ValueError):  # they are on two drives of Windows
            audio = os.path.relpath(audio, saved_data)
        source = {"audio_files_dir": Path(audio).as_posix()}
        write_json(self.feature_save_dir.parent / "source.json", source)


class PreprocessingPipeline:
    """Load, pad, extract, normalise and save every audio file of a folder."""

    def __init__(
        self, loader, padder, extractor, normaliser, saver, *, jobs=1, dask_scheduler=None
    ):
        self.loader = loader
        self.padder = padder
        self.extractor = extractor
        self.normaliser = normaliser
        self.saver = saver
        self.jobs = jobs
        self.dask_scheduler = dask_scheduler

    def preprocess(self, audio_files_dir):
        """Process every audio file below a folder that is not done yet.

        Features of files that changed are replaced; those of files that are gone stay.

        Args:
            audio_files_dir: path of a folder.
        Returns:
            {path below the folder: Outcome}, for every file.
        Raises:
            UserError: all files of earlier runs are gone; nothing was changed.
            OSError: a feature cannot be written; what was written before stays usable.
        """
        stamps, refused = list_audio_files(audio_files_dir)
        origin, journal = self._describe_origin(), self.saver.journal
        outcomes = journal.begin(origin, audio_files_dir, stamps)
        self.saver.save_source(audio_files_dir)
        # The ranges that still hold are written first, so that no feature lies beside another's.
        min_max_values = collect_min_max_values(outcomes)
        self.saver.save_min_max_values(min_max_values)
        journal.remove_other_features(min_max_values.keys())
        waiting = {name: stamp for name, stamp in stamps.items() if name not in outcomes}
        outcomes = {name: Outcome.skip(reason) for name, reason in refused.items()} | outcomes
        folder = os.path.abspath(audio_files_dir)  # a worker may be in another one
        process_file = functools.partial(self.process_file, folder)
        try:
            for name, outcome in process_all(process_file, waiting, self.jobs, self.dask_scheduler):
                outcomes[name] = outcome or Outcome.skip(
                    "ended the process that read it: it is damaged, or too large for the memory"
                )
                min_max_values |= collect_min_max_values({name: outcomes[name]})
                journal.add(name, outcomes[name])
        finally:
            if waiting:  # a worker that ended in the middle may have left some
                journal.remove_other_features(min_max_values.keys())
            self.saver.save_min_max_values(min_max_values)
            print_remarks({name: outcomes[name] for name in waiting if name in outcomes})
        journal.save(origin, outcomes)
        return outcomes

    def process_file(self, folder, name, stamp=None):
        """Turn one file into saved features.

        Args:
            name: of the file, a path below the folder with /.
            stamp: the size and time of the file, by which the next run knows it; None: it is to be
                tried again.
        Returns:
            the Outcome.
        """
        ranges, remarks, lengths, n_bytes = [], [], [], 0
        try:
            path = Path(folder, name)
            for segment, signal in enumerate(self.load_extended(path, remarks, lengths)):
                log_spectrogram = self.extractor.extract(signal, is_extended=True)
                image, min_max = to_image(log_spectrogram, self.normaliser)
                n_bytes = self.saver.save_feature(image, make_key(name, segment))
                ranges.append([min_max["min"], min_max["max"]])
        except TemporaryError as error:
            return Outcome.skip(str(error))
        except MemoryError:
            return Outcome.skip("takes more memory than there is")
        except UserError as error:
            return Outcome.skip(str(error), stamp)
        except OSError as error:
            if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
                raise
            reason = "has a path that the folder of features cannot hold: rename it"
            return Outcome.skip(reason, stamp)
        seconds = sum(lengths) / self.loader.sample_rate
        return Outcome(stamp, n_bytes, ranges, "", "; ".join(remarks), seconds)

    def load_extended(self, path, remarks=None, lengths=None):
        """Yield the signals of a file's pieces, padded, with half a frame more at both ends.

        Args:
            remarks, lengths: lists, to which what the user should know of the file, and the samples
                of each piece without padding are appended.
        """
        signals = self._load_padded(path, remarks, lengths)
        return extend_pieces(signals, self.extractor.frame_size // 2)

    def _load_padded(self, path, remarks, lengths):
        """Yield the signals of a file's pieces, all of one length."""
        for segment, signal in enumerate(self.loader.load_pieces(path, remarks)):
            if segment == 0:
                check_length(signal, self.extractor.frame_size)
            if lengths is not None:
                lengths.append(signal.shape[-1])
            n_missing = self.loader.n_samples - signal.shape[-1]
            yield self.padder.right_pad(signal, n_missing) if n_missing else signal

    def _describe_origin(self):
        """All that the features depend on besides the audio files, for JSON."""
        parts = (self.loader, self.padder, self.extractor, self.normaliser)
        return [FORMAT_VERSION, *map(vars, parts)]


def make_pipeline(settings, saver=None, **options):
    """The PreprocessingPipeline of Settings; its saver may be left out if it saves nothing."""
    parts = (
        Loader(settings.sample_rate, settings.duration, settings.mono),
        Padder(),
        LogSpectrogramExtractor(settings.frame_size, settings.hop_length, top_db=settings.top_db),
        MinMaxNormaliser(0, 1),
    )
    return PreprocessingPipeline(*parts, saver, **options)


def print_remarks(outcomes):
    """Say what the user should know of files that were used, given {name: Outcome}."""
    for name, outcome in outcomes.items():
        if outcome.remark:
            print(f"note: {name!r} {outcome.remark}", file=sys.stderr)


def print_summary(outcomes, skipped, settings):
    """Say how much was kept, and which files were skipped for which reason."""
    for name, reason in skipped:
        print(f"skipped {name!r}: {reason}", file=sys.stderr)
    n_pieces = sum(len(outcome.ranges) for outcome in outcomes.values())
    seconds = sum(outcome.seconds for outcome in outcomes.values())
    print(
        f"{len(outcomes)} files, {n_pieces} pieces, {seconds / 3600:.2f} h of audio, "
        f"{len(skipped)} skipped"
    )
    padding = 1 - seconds / max(1e-9, n_pieces * settings.duration)
    if n_pieces and padding > MOST_PADDING:
        print(
            f"note: {padding:.0%} of what is learned is silence behind sounds of "
            f"{seconds / n_pieces:.2f} s: a --duration nearer to that would spare it",
            file=sys.stderr,
        )
    for reason, count in collections.Counter(reason for _, reason in skipped).most_common():
        print(f"  {count} skipped: {reason}")


def preprocess_folder(
    audio_files_dir, saved_data, settings, *, jobs=JOBS, force=False, dask_scheduler=None
):
    """Preprocess a folder into saved_data, and say what came of it.

    Raises:
        UserError: nothing was kept.
    """
    saved_data = Path(saved_data)
    save_dirs = saved_data / SPECTROGRAMS_SAVE_DIR, saved_data / MIN_MAX_VALUES_SAVE_DIR
    saver = Saver(*save_dirs)
    pipeline = make_pipeline(settings, saver, jobs=jobs, dask_scheduler=dask_scheduler)
    check_folder(audio_files_dir)
    with lock(saved_data, SETTINGS_NAME):
        remove_temporaries(saver.journal.path.parent)
        settings_path = saved_data / SETTINGS_NAME
        if settings_path.exists() and not force and Settings.load(settings_path) != settings:
            raise UserError(f"{saved_data} holds features of other settings: add --force")
        if force:  # before the settings, so that no feature ever lies beside those of others
            for path in (saver.min_max_values_path, saver.journal.path):
                path.unlink(missing_ok=True)
        settings.save(settings_path)
        outcomes = pipeline.preprocess(audio_files_dir)
        skipped = [(name, o.reason) for name, o in sorted(outcomes.items()) if o.reason]
        write_csv(saved_data / "skipped.csv", ("path", "reason"), skipped)
    print_summary(outcomes, skipped, settings)
    if not any(outcome.ranges for outcome in outcomes.values()):
        raise UserError(f"nothing to learn from in {audio_files_dir}: no audio file was kept")


def render_demo():
    """Render the built-in demo set, unless it exists."""
    if Path(AUDIO_FILES_DIR).is_dir():
        return
    import runpy

    script = Path(__file__).parent / "data" / "demo" / "prepare.py"
    print(f"no audio folder was given: rendering the demo set into {AUDIO_FILES_DIR}")
    runpy.run_path(str(script))["render"](AUDIO_FILES_DIR)


def get_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--audio_files_dir", type=folder_path, default=AUDIO_FILES_DIR, help="folder of audio")
    add("--saved_data", type=folder_path, default=SAVED_DATA, help="folder to write")
    for name, default, help_text in (
        ("frame_size", FRAME_SIZE, "samples of a frame, even"),
        ("hop_length", HOP_LENGTH, "samples between frames, at most half of frame_size"),
        ("duration", DURATION, "seconds of a piece"),
        ("sample_rate", SAMPLE_RATE, "Hz"),
    ):
        add(f"--{name}", type=number(*LIMITS[name]), default=default, help=help_text)
    yes_or_no = argparse.BooleanOptionalAction
    add("--mono", action=yes_or_no, default=MONO, help="mix all channels down to one")
    where = parser.add_mutually_exclusive_group()
    help_text = "processes; -1: one for every core, two at least"
    where.add_argument("--jobs", type=number(int, -1), default=JOBS, help=help_text)
    help_text = "spread the work over this Dask cluster, for example tcp://10.0.0.1:8786"
    where.add_argument("--dask_scheduler", metavar="ADDRESS", help=help_text)
    help_text = "make all features again, and replace those of other settings or audio"
    add("--force", action="store_true", help=help_text)
    return parser


def main(argv=None):
    parser = get_parser()
    options = parser.parse_args(argv)
    try:
        settings = Settings(
            options.sample_rate,
            options.frame_size,
            options.hop_length,
            options.duration,
            options.mono,
            TOP_DB,
        )
    except UserError as error:
        parser.error(str(error))
    if options.audio_files_dir == Path(AUDIO_FILES_DIR):
        render_demo()
    preprocess_folder(
        options.audio_files_dir,
        options.saved_data,
        settings,
        jobs=options.jobs or 1,
        force=options.force,
        dask_scheduler=options.dask_scheduler,
    )


if __name__ == "__main__":
    from preprocess import main  # of a module that worker processes can import, unlike __main__

    run_script(main, "what is done stays, and the same command goes on from there")
