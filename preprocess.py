"""Turn a folder of audio into min-max-normalised log spectrograms.

In:  any folder of audio that libsndfile reads, at any depth, rate and channel count.
Out: saved_data/spectrograms/<audio path>.<segment>.npy, settings.json, min_max_values.pkl.

    python preprocess.py --audio_files_dir my_music --saved_data saved_data
"""

import argparse
import collections
import csv
import io
import json
import os
import pickle
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np

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

TOP_DB = 80.0  # dB kept below a piece's own peak
FORMAT_VERSION = 1  # of what lies in SAVED_DATA
READ_BLOCK = 1 << 20  # samples decoded at a time
SAVE_EVERY = 50  # tracks between two writes of the min-max values
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
        return self._read(file_path, self.duration)[..., : self.n_samples]

    def load_whole(self, file_path):
        """All of a file, as load() returns it."""
        return self._read(file_path, None)

    def load_pieces(self, file_path):
        """All consecutive pieces of a file, a list of signals as load() returns them.

        The last one may be shorter; it is left out below half of `duration`, unless alone.
        """
        signal = self.load_whole(file_path)
        starts = range(0, max(signal.shape[-1], 1), self.n_samples)
        pieces = [signal[..., start : start + self.n_samples] for start in starts]
        if len(pieces) > 1 and 2 * pieces[-1].shape[-1] < self.n_samples:
            pieces.pop()
        return pieces

    def _read(self, file_path, duration):
        """Decode `duration` seconds (None: all), mixed down, at the loader's rate; float32."""
        import librosa
        import soundfile

        try:
            with open(file_path, "rb") as raw, soundfile.SoundFile(raw) as sound_file:
                n_wanted = sound_file.frames
                if duration is not None:
                    n_wanted = min(n_wanted, int(np.ceil(duration * sound_file.samplerate)))
                blocks = self._read_blocks(sound_file, n_wanted)
                check_whole(sound_file, sum(b.shape[-1] for b in blocks), n_wanted)
                native_rate = sound_file.samplerate
        except (soundfile.LibsndfileError, TypeError) as error:
            reason = str(getattr(error, "error_string", "") or "headerless audio").rstrip(".")
            raise ValueError(f"not readable as audio ({reason})") from error
        except OSError as error:
            raise ValueError(f"cannot be opened ({error.strerror})") from error
        if not blocks:
            raise ValueError("holds no samples")
        signal = np.concatenate(blocks, axis=-1)
        if not np.isfinite(signal).all():
            raise ValueError("holds samples that are not finite (NaN or infinity)")
        if native_rate != self.sample_rate:
            signal = librosa.resample(signal, orig_sr=native_rate, target_sr=self.sample_rate)
        return signal

    def _read_blocks(self, sound_file, n_wanted):
        # A header may promise more than the file holds: memory follows what was decoded.
        blocks, n_read = [], 0
        while n_read < n_wanted:
            block = sound_file.read(min(READ_BLOCK, n_wanted - n_read), "float32", always_2d=True)
            if not len(block):
                break
            n_read += len(block)
            blocks.append(self._mix(block.T))
        return blocks

    def _mix(self, block):
        # (n_channels, n) -> (n,) or (2, n); the even channels are left, the odd ones right
        if self.mono:
            return block.mean(axis=0)
        if len(block) == 1:
            return np.repeat(block, 2, axis=0)
        return np.stack([block[0::2].mean(axis=0), block[1::2].mean(axis=0)])


def check_whole(sound_file, n_read, n_wanted):
    """Raise ValueError where an open file has fewer samples than its header promises."""
    # libsndfile shortens a cut WAV without an error, and tells only its log.
    cut_wav = sound_file.format.startswith(("WAV", "AIFF", "AU", "RF64", "W64")) and any(
        line.strip().startswith(("data", "SSND", "Data Size")) and "should be" in line
        for line in sound_file.extra_info.splitlines()
    )
    if cut_wav or n_read < n_wanted:
        raise ValueError("is cut short: it ends before the length its header gives")


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
        """The log spectrogram of a signal.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
        Returns:
            float32 (n_bins, n_frames) or (n_bins, n_frames, 2), dB re 1.0, floored top_db below
            the peak; n_bins = frame_size / 2, n_frames = 1 + n_samples // hop_length.
        """
        import librosa

        with warnings.catch_warnings():  # a piece shorter than a frame is padded by the transform
            warnings.filterwarnings("ignore", message="n_fft=.* is too large")
            stft = librosa.stft(signal, n_fft=self.frame_size, hop_length=self.hop_length)
        spectrogram = np.abs(stft[..., :-1, :])  # (n_bins, n_frames) or (2, n_bins, n_frames)
        log_spectrogram = librosa.amplitude_to_db(spectrogram, ref=1.0, top_db=self.top_db)
        if log_spectrogram.ndim == 3:
            log_spectrogram = np.moveaxis(log_spectrogram, 0, -1)  # (n_bins, n_frames, 2)
        return np.ascontiguousarray(log_spectrogram, dtype=np.float32)


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


class Saver:
    """Writes features as .npy files and their min-max values as one pickle."""

    def __init__(self, feature_save_dir, min_max_values_save_dir):
        self.feature_save_dir = Path(feature_save_dir)
        self.min_max_values_path = Path(min_max_values_save_dir) / "min_max_values.pkl"

    def save_feature(self, feature, key):
        """Write one array as feature_save_dir/key."""
        buffer = io.BytesIO()
        np.save(buffer, feature, allow_pickle=False)
        write_atomically(self.feature_save_dir / key, buffer.getvalue())

    def save_min_max_values(self, min_max_values):
        """Write {key: {"min": dB, "max": dB}}, sorted by key."""
        # Made anew: a pickle's bytes tell apart equal strings that came from other processes.
        ordered = {
            key: {"min": entry["min"], "max": entry["max"]}
            for key, entry in sorted(min_max_values.items())
        }
        write_atomically(self.min_max_values_path, pickle.dumps(ordered, protocol=4))


class PreprocessingPipeline:
    """Load, pad, extract, normalise and save every audio file of a folder."""

    def __init__(self, loader, padder, extractor, normaliser, saver, *, segments=SEGMENTS, jobs=1):
        self.loader = loader
        self.padder = padder
        self.extractor = extractor
        self.normaliser = normaliser
        self.saver = saver
        self.segments = segments
        self.jobs = jobs

    def preprocess(self, audio_files_dir):
        """Process every audio file below a folder.

        Returns:
            ({key: {"min": dB, "max": dB}}, [(path, reason)] of the skipped files).
        """
        import joblib
        from tqdm import tqdm

        keys = list_audio_files(audio_files_dir)
        min_max_values, skipped = {}, []
        tracks = joblib.Parallel(self.jobs, return_as="generator")(
            joblib.delayed(self.process_file)(audio_files_dir, key) for key in keys
        )
        try:
            progress = tqdm(tracks, total=len(keys), unit="file", disable=None)
            for count, (key, values, reason) in enumerate(progress, 1):
                min_max_values.update(values)
                if reason:
                    skipped.append((key, reason))
                if count % SAVE_EVERY == 0:
                    self.saver.save_min_max_values(min_max_values)
        finally:
            self.saver.save_min_max_values(min_max_values)
        return min_max_values, skipped

    def process_file(self, audio_files_dir, track):
        """Save the pieces of one track; (track, {key: min-max}, why it was skipped or "")."""
        try:
            pieces = self._load(Path(audio_files_dir) / track)
        except ValueError as error:
            return track, {}, str(error)
        values = {}
        for index, signal in enumerate(pieces):
            key = f"{track}.{index:03d}.npy"
            values[key] = self._process_piece(signal, key)
        return track, values, ""

    def _load(self, path):
        if not path.is_file() or path.is_symlink():
            raise ValueError("is a link or no regular file")
        every = self.segments == "all"
        pieces = self.loader.load_pieces(path) if every else [self.loader.load(path)]
        if pieces[0].shape[-1] < self.extractor.frame_size:
            raise ValueError(
                f"is shorter than one frame: {pieces[0].shape[-1]} of "
                f"{self.extractor.frame_size} samples at {self.loader.sample_rate} Hz"
            )
        return pieces

    def _process_piece(self, signal, key):
        n_missing = self.loader.n_samples - signal.shape[-1]
        if n_missing > 0:
            signal = self.padder.right_pad(signal, n_missing)
        log_spectrogram = self.extractor.extract(signal)
        self.saver.save_feature(self.normaliser.normalise(log_spectrogram), key)
        return {"min": float(log_spectrogram.min()), "max": float(log_spectrogram.max())}


def list_audio_files(audio_files_dir):
    """Sorted paths, relative and with /, of all files below a folder that are not hidden."""
    root = Path(audio_files_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: give one with --audio_files_dir")
    keys = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        below = Path(folder).relative_to(root)
        keys += [(below / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(keys)


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


def write_atomically(path, data):
    """Write bytes to a path so that a reader sees the old content or all of the new."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{os.getpid()}.tmp"
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path, values):
    """Write a dict as indented JSON, atomically."""
    write_atomically(path, (json.dumps(values, indent=2) + "\n").encode())


def write_csv(path, columns, rows):
    """Write a table atomically: the names of its columns, and its rows of as many values."""
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    write_atomically(path, text.getvalue().encode("utf-8", "backslashreplace"))


def write_figure(path, figure, dpi=120):
    """Write a matplotlib figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    write_atomically(path, buffer.getvalue())


def load_settings(path):
    """The Settings in a settings.json.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is none of this version.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no settings at {path}: run preprocess.py first")
    try:
        settings = Settings(**json.loads(path.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no settings file: run preprocess.py --force") from error
    if settings.format_version != FORMAT_VERSION:
        raise ValueError(f"{path} has another format: run preprocess.py --force")
    return settings


def get_track(key):
    """The audio file of a key: all before `.<segment>.npy`."""
    return key.rsplit(".", 2)[0]


def list_keys(spectrograms_path):
    """Keys (paths relative to the folder, with /) of all .npy files below a folder.

    They are sorted by track, and in a track by segment, the thousandth behind the others.
    """
    root = Path(spectrograms_path)
    paths = [path.relative_to(root) for path in root.rglob("*.npy")]
    keys = [p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts)]
    keys.sort(key=lambda key: (get_track(key), len(key), key))
    if not keys:
        raise FileNotFoundError(f"no spectrograms in {root}: run preprocess.py first")
    return keys


def load_spectrogram(spectrograms_path, key):
    """One normalised spectrogram, float32 (n_bins, n_frames, n_channels), in [0, 1]."""
    path = Path(spectrograms_path) / key
    try:
        spectrogram = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is damaged: delete it and run preprocess.py again") from error
    if spectrogram.ndim == 2:
        spectrogram = np.expand_dims(spectrogram, -1)
    is_real = np.issubdtype(spectrogram.dtype, np.floating)
    if spectrogram.ndim != 3 or not is_real or not np.isfinite(spectrogram).all():
        raise ValueError(f"{path} is no finite spectrogram: delete it and run preprocess.py again")
    return spectrogram.astype(np.float32, copy=False)


def get_min_max_path(saved_data):
    """Where the min-max values of a folder that preprocess.py wrote lie."""
    return Path(saved_data) / MIN_MAX_VALUES_SAVE_DIR / "min_max_values.pkl"


def load_min_max_values(path):
    """{key: {"min": dB, "max": dB}} as the Saver wrote it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no min-max values at {path}: run preprocess.py first")
    return pickle.loads(path.read_bytes())


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


def prepare_saved_data(saved_data, audio_files_dir, settings, force):
    """Make the output folder ready; refuse to mix two data sets in it unless forced."""
    settings_path = saved_data / SPECTROGRAMS_SAVE_DIR / "settings.json"
    source_path = saved_data / "source.json"
    source = {"audio_files_dir": str(Path(audio_files_dir).resolve())}
    if settings_path.exists() and not force:
        if load_settings(settings_path) != settings:
            raise ValueError(f"{saved_data} holds features of other settings: add --force")
        if not source_path.exists() or json.loads(source_path.read_text()) != source:
            raise ValueError(f"{saved_data} holds features of another folder: add --force")
    elif saved_data.exists() and not settings_path.exists() and any(saved_data.iterdir()):
        raise ValueError(f"{saved_data} is not empty and was not written here: name another")
    for name in (SPECTROGRAMS_SAVE_DIR, MIN_MAX_VALUES_SAVE_DIR):
        shutil.rmtree(saved_data / name, ignore_errors=True)
    write_json(source_path, source)
    write_json(settings_path, settings._asdict())


def print_summary(n_files, n_pieces, hours, skipped):
    for path, reason in skipped:
        print(f"skipped {path!r}: {reason}", file=sys.stderr)
    print(f"{n_files} files, {n_pieces} pieces, {hours:.2f} h of audio, {len(skipped)} skipped")
    for reason, count in collections.Counter(reason for _, reason in skipped).most_common():
        print(f"  {count} skipped: {reason}")


def run(audio_files_dir, saved_data, settings, jobs=JOBS, force=False, strict=False):
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
        segments=settings.segments, jobs=jobs,
    )  # fmt: skip
    n_files = len(list_audio_files(audio_files_dir))
    if not n_files:
        raise ValueError(f"{audio_files_dir} is empty: give a folder of audio, --audio_files_dir")
    prepare_saved_data(saved_data, audio_files_dir, settings, force)
    min_max_values, skipped = pipeline.preprocess(audio_files_dir)
    write_csv(saved_data / "skipped.csv", ("path", "reason"), skipped)
    hours = len(min_max_values) * settings.duration / 3600
    print_summary(n_files, len(min_max_values), hours, skipped)
    if not min_max_values:
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
    add("--frame_size", type=number(int, 4, 1 << 16), default=FRAME_SIZE, help="samples, even")
    add("--hop_length", type=number(int, 1), default=HOP_LENGTH, help="samples, <= frame_size / 2")
    add("--duration", type=number(float, 0.01, 3600), default=DURATION, help="seconds a piece")
    add("--sample_rate", type=number(int, 100, 768000), default=SAMPLE_RATE, help="Hz")
    add("--mono", action=argparse.BooleanOptionalAction, default=MONO, help="mix down to one")
    add("--segments", choices=["all", "first"], default=SEGMENTS, help="pieces of each track")
    add("--jobs", type=number(int, -1), default=JOBS, help="processes, -1: every core")
    add("--force", action="store_true", help="replace features of other settings or audio")
    add("--strict", action="store_true", help="exit 1 when any file was skipped")
    return parser


def main():
    parser = get_parser()
    options = parser.parse_args()
    if options.frame_size % 2:
        parser.error(f"argument --frame_size: must be even, got {options.frame_size}")
    if options.hop_length > options.frame_size // 2:
        parser.error(
            f"argument --hop_length: must be at most {options.frame_size // 2} (half of "
            f"frame_size), got {options.hop_length}"
        )
    settings = Settings(
        FORMAT_VERSION, options.sample_rate, options.frame_size, options.hop_length,
        options.duration, options.mono, options.segments, TOP_DB,
    )  # fmt: skip
    if options.audio_files_dir == AUDIO_FILES_DIR:
        render_demo()
    run(
        options.audio_files_dir, options.saved_data, settings,
        options.jobs or 1, options.force, options.strict,
    )  # fmt: skip


def exit_with_one_line(main_function):
    """Run a script's main; expected errors become one line on stderr and exit status 1."""
    try:
        main_function()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    exit_with_one_line(main)
