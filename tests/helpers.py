"""What several test files share: sounds, images, settings, and scripts in fresh processes."""

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

import preprocess
from support import dataset, files
from support.settings import Settings
from support.tracks import TrainingTracks

ROOT = Path(__file__).resolve().parent.parent
SAMPLE_RATE = 22050  # Hz
TIMEOUT_S = 300  # seconds after which a script is taken to hang


def make_tone(frequency=440.0, duration=1.0, sample_rate=SAMPLE_RATE, level=0.5):
    """A sine, float32 (n_samples,)."""
    time = np.arange(int(duration * sample_rate)) / sample_rate
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def measure_pitch(signal):
    """The strongest frequency of a signal at SAMPLE_RATE, Hz."""
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal)), 1 << 19))
    return spectrum.argmax() * SAMPLE_RATE / (1 << 19)


def make_music(duration=3.0, seed=0):
    """Decaying partials over soft noise, float32 (n_samples,)."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE
    signal = 0.002 * rng.standard_normal(len(time))
    for frequency in rng.uniform(100, 3000, 12):
        signal += 0.05 * np.sin(2 * np.pi * frequency * time) * np.exp(-(time % 0.5) * 4)
    return signal.astype(np.float32)


def write_tracks(folder, n, duration=1.2):
    """Write so many tracks of music into a folder, each of its own seed."""
    folder.mkdir(parents=True)
    for track in range(n):
        soundfile.write(folder / f"{track}.wav", make_music(duration, seed=track), SAMPLE_RATE)


def write_with_ffmpeg(path, channels, codec, layout="mono", sample_rate=44100, **options):
    """Write float32 (n_channels, n) with one of FFmpeg's encoders; the path.

    Args:
        options: of the container, for example write_xing="0" for an MP3 without its length.
    """
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=sample_rate, layout=layout, bit_rate=128_000)
        resampler = av.AudioResampler(stream.format, layout, sample_rate, frame_size=1024)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), "fltp", layout)
        frame.sample_rate = sample_rate
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux(stream.encode(part))
    return path


def make_images(n=24, shape=(16, 12, 1), seed=0):
    """Smooth random images in [0.1, 0.9], float32 (n, *shape)."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0.1, 0.7, (n, 2, 1, 1, shape[2]))
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]][..., None]
    return (0.5 + 0.4 * np.sin(waves[:, 0] * rows + waves[:, 1] * columns)).astype(np.float32)


def make_settings(**fields):
    """Settings of short, small pieces; fields can be given by name."""
    values = {
        "sample_rate": SAMPLE_RATE,
        "frame_size": 256,
        "hop_length": 64,
        "duration": 0.3,
        "mono": True,
        "top_db": preprocess.TOP_DB,
    }
    return Settings(**{**values, **fields})


def make_flags(**values):
    """preprocess.py's flags for short, small pieces; other values can be given by name."""
    values = {"frame_size": 256, "hop_length": 64, "duration": 0.3, **values}
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def start_script(script, *flags, cwd, **environment):
    """Start a script of the project in a process group of its own; its Popen, with pipes of text.

    Args:
        script: path below the project's folder.
        cwd: the folder that it runs in.
        environment: variables to set.
    """
    return subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        cwd=cwd,
        env={**os.environ, "MPLCONFIGDIR": str(cwd), **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's & ignores it
    )


def run_script(script, *flags, cwd, **environment):
    """Run a script in a process of its own to its end; the CompletedProcess, with its output."""
    process = start_script(script, *flags, cwd=cwd, **environment)
    try:
        printed, errors = process.communicate(timeout=TIMEOUT_S)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, printed, errors)


@contextlib.contextmanager
def compute_eagerly():
    """TensorFlow computes op by op, and traces nothing."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Even though")  # even where warnings are errors
            yield
    finally:
        tf.config.run_functions_eagerly(False)


@contextlib.contextmanager
def mount(folder, options):
    """A tmpfs, or a skipped test where this is not allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        yield lambda options: subprocess.run(
            ["mount", "-o", f"remount,{options}", str(folder)], check=True
        )
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def find_free_port():
    """A port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def read_csv(path):
    """The rows of a table, as dicts."""
    with open(path, newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def load_ranges(saved_data):
    """The min-max values of a folder that preprocess.py wrote."""
    return dataset.Features.of(saved_data).min_max_values


def read_all(folder):
    """{path below a folder: bytes} of its files, but for the lock."""
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in paths
        if path.name != files.LOCK
    }


def assert_close(weights, others):
    """Two lists of arrays of weights are the same, but for how sums were rounded."""
    # Sums are rounded in another order, which Adam amplifies: means of up to 2e-5, more or less by
    # processor. Batches that miss half of their items give means of at least 1.2e-4.
    for values, other in zip(weights, others, strict=True):
        assert np.abs(values - other).mean() < 5e-5


class DeadlyLoader(preprocess.Loader):
    """A Loader that ends its process over some files, as a fault in a C library would."""

    def load_pieces(self, file_path, remarks=None):
        if "deadly" in Path(file_path).name:
            os._exit(11)
        return super().load_pieces(file_path, remarks)


class PlainExtractor:
    """Cuts a signal into the columns of an image.

    Unlike a Fourier transform it imports nothing, so that a worker is ready much sooner.
    """

    frame_size = 256

    def extract(self, signal, *, is_extended):
        n_frames = len(signal) // self.frame_size
        return signal[: n_frames * self.frame_size].reshape(n_frames, -1).T


def make_pipeline(loader, folder, **keywords):
    """A pipeline that writes into a folder as preprocess.py does, and needs little time."""
    return preprocess.PreprocessingPipeline(
        loader,
        preprocess.Padder(),
        PlainExtractor(),
        preprocess.MinMaxNormaliser(0, 1),
        preprocess.Saver(
            folder / dataset.SPECTROGRAMS_SAVE_DIR, folder / dataset.MIN_MAX_VALUES_SAVE_DIR
        ),
        **keywords,
    )


def make_tracks(names, peaks=0.0):
    """TrainingTracks of one length, and silent.

    Args:
        peaks: dB, of each or of all.
    """
    n = len(names)
    return TrainingTracks(
        np.zeros((3 * n, 4), np.uint8),
        np.full(n, 3),
        np.full(n, peaks, np.float32),
        np.array(names),
        np.array([dataset.get_genre(name) for name in names]),
    )


def name_folders(folder, model="model"):
    """The flags that name the features and a model in a folder."""
    return ["--saved_data", str(folder / "saved_data"), "--model", str(folder / model)]
