"""Speed and memory of preprocess.py beside the plain loop that librosa's users write.

In:  a folder of audio, which is written anew as mono WAV of 22.05 kHz, and as stereo MP3 and OGG
     of 44.1 kHz, in as many files as are asked for.
Out: tables on stdout and as CSV: whole runs, start of Python included; the cost of each step.

    python -m benchmarks.preprocessing --audio_files_dir my_music --n_files 300
"""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import librosa
import numpy as np
import psutil

from benchmarks.audio import load_all
from preprocess import (
    AUDIO_FILES_DIR,
    DURATION,
    FRAME_SIZE,
    HOP_LENGTH,
    JOBS,
    SAMPLE_RATE,
    Loader,
    LogSpectrogramExtractor,
    MinMaxNormaliser,
    Saver,
)
from support.audio import mix
from support.command_line import make_parser, number, run_script
from support.errors import UserError
from support.files import write_csv
from support.readers import read_blocks
from support.spectrograms import to_image

ROOT = Path(__file__).resolve().parent.parent
N_FILES = 300
N_FILES_MEMORY = 1500  # for the growth of memory
N_ROUNDS = 3  # the programs take turns; the best round of each counts
N_STEP_TRACKS = 8  # that the cost of the steps is measured on
SAMPLE_S = 0.05  # seconds between two looks at the memory
KINDS = {  # ending and channels of each kind of file
    "WAV, 22.05 kHz mono": ("wav", 1),
    "MP3, 44.1 kHz stereo": ("mp3", 2),
    "OGG, 44.1 kHz stereo": ("ogg", 2),
}
PROGRAMS = ("serial librosa loop", "ours", "ours, again")
COLUMNS = (
    "kind",
    "program",
    "files",
    "seconds",
    "tracks_per_s",
    "times_real_time",
    "peak_mb",
    "disk_mb",
)
STEP_COLUMNS = ("kind", "step", "ms_per_minute_of_sound", "share")


def load_signals(audio_files_dir):
    """The whole signals of a folder, float32 (n_samples,) at SAMPLE_RATE."""
    signals = load_all(audio_files_dir, Loader(SAMPLE_RATE, DURATION, True).load_whole)
    if not signals:
        raise UserError(f"{audio_files_dir} holds no audio: see --audio_files_dir")
    return signals


def write_files(signals, folder, kind, n_files):
    """Write the signals as files of a kind, over and over; seconds of sound in all."""
    import soundfile

    ending, n_channels = KINDS[kind]
    sample_rate = SAMPLE_RATE * n_channels
    folder.mkdir()
    files = []  # (bytes, seconds) of each signal
    for signal in signals[:n_files]:
        if n_channels == 2:
            left = librosa.resample(signal, orig_sr=SAMPLE_RATE, target_sr=sample_rate)
            signal = np.stack([left, 0.8 * np.roll(left, 200)], axis=1)
        path = folder / f"signal.{ending}"
        soundfile.write(path, 0.8 * signal, sample_rate)
        files.append((path.read_bytes(), len(signal) / sample_rate))
        path.unlink()
    for index in range(n_files):
        (folder / f"{index:06d}.{ending}").write_bytes(files[index % len(files)][0])
    return sum(files[index % len(files)][1] for index in range(n_files))


def make_commands(audio_files_dir, saved_data, jobs):
    """{program: command}."""
    audio, saved = str(audio_files_dir), str(saved_data)
    serial = ["-m", "benchmarks.serial_loop", audio, saved]
    ours = ["preprocess.py", "--audio_files_dir", audio, "--saved_data", saved]
    ours = [sys.executable, *ours, "--jobs", str(jobs)]
    return {"serial librosa loop": [sys.executable, *serial], "ours": ours}


def run(command):
    """(seconds, peak resident MB of all its processes, shared pages counted once) of a command."""
    started = time.perf_counter()
    process = psutil.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        peak = executor.submit(find_peak, process)
        process.wait()
        seconds = time.perf_counter() - started
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return seconds, peak.result() / 1e6


def find_peak(process):
    """The most memory that a process and its children take, bytes, while it runs."""
    peak = 0
    while process.returncode is None:
        peak = max(peak, measure_memory(process))
        time.sleep(SAMPLE_S)
    return peak


def measure_memory(process):
    total = 0
    try:
        for part in [process, *process.children(recursive=True)]:
            total += getattr(part.memory_full_info(), "pss", part.memory_info().rss)
    except psutil.Error:  # it has just ended
        pass
    return total


def time_programs(audio_files_dir, jobs, n_rounds):
    """{program: (seconds, peak MB, MB on disk)} of the best of some rounds; ours again with
    nothing to do."""
    saved_data = audio_files_dir.with_name("saved")
    commands = [*make_commands(audio_files_dir, saved_data, jobs).items()]
    best = {}
    for round_index in range(n_rounds):
        for program, command in commands[:: -1 if round_index % 2 else 1]:
            saved_data.mkdir()
            os.sync()  # so that the disk is not busy with what was written before
            results = {program: run(command)}
            if program == "ours":
                results["ours, again"] = run(command)
            disk = measure_disk(saved_data)
            for name, result in results.items():
                best[name] = min(best.get(name, (*result, disk)), (*result, disk))
            shutil.rmtree(saved_data)
    return best


def measure_disk(folder):
    """MB of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def make_row(kind, program, n_files, duration, seconds, peak, disk):
    return kind, program, n_files, seconds, n_files / seconds, duration / seconds, peak, disk


def time_steps(kind, audio_files_dir):
    """A row for each step of a track, one process: milliseconds per minute of sound, and share."""
    import scipy.fft
    import soxr

    seconds, duration = {}, 0.0

    def measure(step, function, *arguments):
        started = time.perf_counter()
        result = function(*arguments)
        seconds[step] = seconds.get(step, 0) + time.perf_counter() - started
        return result

    n_samples = Loader(SAMPLE_RATE, DURATION, True).n_samples
    extractor, normaliser = LogSpectrogramExtractor(FRAME_SIZE, HOP_LENGTH), MinMaxNormaliser(0, 1)
    extractor.extract(np.zeros(n_samples, np.float32))  # librosa imports its parts late
    frames = np.ones((1 + n_samples // HOP_LENGTH, FRAME_SIZE), np.float32)
    with tempfile.TemporaryDirectory(dir=audio_files_dir.parent) as folder:
        saver = Saver(folder, folder)
        for path in sorted(audio_files_dir.iterdir())[:N_STEP_TRACKS]:
            with open(path, "rb", buffering=0) as file:
                blocks = measure("decode", list, read_blocks(file, []))
            rate = blocks[0][0]
            signal = measure("mix down", mix_blocks, blocks)
            if rate != SAMPLE_RATE:
                signal = measure("resample", soxr.resample, signal, rate, SAMPLE_RATE)
            duration += len(signal) / SAMPLE_RATE
            for start in range(0, len(signal) - n_samples + 1, n_samples):
                piece = signal[start : start + n_samples]
                log_spectrogram = measure("stft and decibels", extractor.extract, piece)
                image, _ = measure("min-max", to_image, log_spectrogram, normaliser)
                measure("save", saver.save_feature, image, f"{path.name}.{start}.npy")
                measure("(the FFT alone)", scipy.fft.rfft, frames)
    whole = sum(value for step, value in seconds.items() if not step.startswith("("))
    seconds["(decode and the FFT alone)"] = seconds["decode"] + seconds["(the FFT alone)"]
    return [
        (kind, step, 1000 * value / (duration / 60), value / whole)
        for step, value in seconds.items()
    ]


def mix_blocks(blocks):
    """The signal, float32 (n_samples,), of what read_blocks yields."""
    return np.concatenate([mix(block, True) for _, block in blocks])


def print_table(columns, rows):
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in row)
        print("| " + " | ".join(cells) + " |", flush=True)


def get_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    count = {"type": number(int, 1)}
    add("--audio_files_dir", default=AUDIO_FILES_DIR, help="folder of audio")
    add("--n_files", default=N_FILES, help="files of each kind", **count)
    help_text = "files for the growth of memory"
    add("--n_files_memory", default=N_FILES_MEMORY, help=help_text, **count)
    add("--n_rounds", default=N_ROUNDS, help="rounds, of which the best counts", **count)
    add("--jobs", type=number(int, -1), default=JOBS, help="processes of ours")
    add("--folder", help="where a temporary folder is made; None: the system's")
    help_text = "table to write; that of the steps is named after it"
    add("--output", type=Path, default=Path("preprocessing.csv"), help=help_text)
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    signals = load_signals(options.audio_files_dir)
    rows, steps, times = [], [], {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folder = Path(folder).resolve()  # the programs run in ROOT
        for kind, (ending, _) in KINDS.items():
            duration = write_files(signals, folder / ending, kind, options.n_files)
            times[kind] = time_programs(folder / ending, options.jobs, options.n_rounds)
            for program in PROGRAMS:
                result = times[kind][program]
                rows.append(make_row(kind, program, options.n_files, duration, *result))
            steps += time_steps(kind, folder / ending)
        kind, n_files = next(iter(KINDS)), options.n_files_memory
        duration = write_files(signals, folder / "many", kind, n_files)
        os.sync()
        result = run(make_commands(folder / "many", folder / "saved", options.jobs)["ours"])
        disk = measure_disk(folder / "saved")
        rows.append(make_row(kind, "ours", n_files, duration, *result, disk))
    write_csv(options.output, COLUMNS, rows)
    write_csv(options.output.with_stem(f"{options.output.stem}_steps"), STEP_COLUMNS, steps)
    print(f"{os.cpu_count()} cores, {options.jobs if options.jobs > 0 else 'as many'} processes")
    print_table(COLUMNS, rows)
    for kind, best in times.items():
        serial, ours, again = (best[n][0] for n in ("serial librosa loop", "ours", "ours, again"))
        print(
            f"{kind}: ours is {serial / ours:.2f} times the serial loop; with nothing to do "
            f"{ours / again:.0f} times as fast as the first time"
        )
    print_table(STEP_COLUMNS, steps)
    print(
        f"peak memory with {options.n_files} and with {n_files} files: {rows[1][6]:.0f} and "
        f"{rows[-1][6]:.0f} MB"
    )


if __name__ == "__main__":
    run_script(main)
