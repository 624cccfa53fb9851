"""Speed and memory of preprocess.py beside the plain loop that librosa's users write.

In:  a folder of audio, which is written anew as mono WAV of 22.05 kHz, and as stereo MP3 and OGG
     of 44.1 kHz, in as many files as are asked for.
Out: tables on stdout and as CSV: whole runs, start of Python included; the cost of each step.

    python benchmarks/preprocessing.py --audio_files_dir music --n_files 300
"""

import argparse
import concurrent.futures
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import preprocess
from support.audio import mix, read_blocks
from support.command_line import exit_with_one_line, number
from support.files import write_csv

ROOT = Path(__file__).resolve().parent.parent
N_FILES = 300
N_FILES_MEMORY = 1500  # for the growth of memory
N_ROUNDS = 3  # both programs in turns; the best time of each counts
N_STEP_TRACKS = 8  # that the cost of the steps is measured on
SAMPLE_S = 0.05  # seconds between two looks at the memory
KINDS = {"WAV, 22.05 kHz mono": ("wav", 1), "MP3, 44.1 kHz stereo": ("mp3", 2),
         "OGG, 44.1 kHz stereo": ("ogg", 2)}  # fmt: skip
COLUMNS = ("kind", "program", "files", "seconds", "tracks_per_s", "times_real_time", "peak_mb")
STEP_COLUMNS = ("kind", "step", "ms_per_minute_of_sound", "share")


def preprocess_serially(audio_files_dir, saved_data):
    """The plain loop: load, stft, decibels, min-max, np.save; one file after the other."""
    import librosa

    loader = preprocess.Loader(preprocess.SAMPLE_RATE, preprocess.DURATION, True)
    values = {}
    for path in sorted(Path(audio_files_dir).iterdir()):
        signal, _ = librosa.load(path, sr=preprocess.SAMPLE_RATE)
        for index, start in enumerate(range(0, len(signal), loader.n_samples)):
            piece = signal[start : start + loader.n_samples]
            if index > 0 and 2 * len(piece) < loader.n_samples:
                break
            piece = np.pad(piece, (0, loader.n_samples - len(piece)))
            log_spectrogram = extract_with_librosa(piece)
            low, high = log_spectrogram.min(), log_spectrogram.max()
            key = f"{path.name}.{index:03d}.npy"
            values[key] = {"min": float(low), "max": float(high)}
            np.save(Path(saved_data) / key, (log_spectrogram - low) / (high - low))
    (Path(saved_data) / "min_max_values.pkl").write_bytes(pickle.dumps(values))


def extract_with_librosa(signal):
    """The log spectrogram of a piece as librosa makes it."""
    import librosa

    stft = librosa.stft(signal, n_fft=preprocess.FRAME_SIZE, hop_length=preprocess.HOP_LENGTH)
    return librosa.amplitude_to_db(np.abs(stft[:-1]))


def time_import():
    """Seconds that a new Python takes to import the parts of librosa that a spectrogram needs."""
    seconds = [run([sys.executable, "-c", code])[0] for code in ("import numpy",
               "import numpy, librosa; librosa.stft, librosa.amplitude_to_db")]  # fmt: skip
    return seconds[1] - seconds[0]


def load_sources(audio_files_dir):
    """The whole signals of a folder, float32 (n_samples,) at SAMPLE_RATE."""
    from held_out import load_all  # which takes 50 ms that are not the serial loop's

    loader = preprocess.Loader(preprocess.SAMPLE_RATE, preprocess.DURATION, True)
    signals = load_all(audio_files_dir, loader.load_whole)
    if not signals:
        raise ValueError(f"{audio_files_dir} holds no audio: see --audio_files_dir")
    return signals


def write_files(signals, folder, kind, n_files):
    """Write the signals as files of a kind, over and over; seconds of sound in all."""
    import librosa
    import soundfile

    ending, n_channels = KINDS[kind]
    folder.mkdir()
    encoded = []
    for index, signal in enumerate(signals[:n_files]):
        path = folder / f"{index:06d}.{ending}"
        sample_rate = preprocess.SAMPLE_RATE
        if n_channels == 2:
            sample_rate *= 2
            left = librosa.resample(signal, orig_sr=preprocess.SAMPLE_RATE, target_sr=sample_rate)
            signal = np.stack([left, 0.8 * np.roll(left, 200)], axis=1)
        soundfile.write(path, 0.8 * signal, sample_rate)
        encoded.append((path.read_bytes(), len(signal) / sample_rate))
    for index in range(len(encoded), n_files):
        (folder / f"{index:06d}.{ending}").write_bytes(encoded[index % len(encoded)][0])
    return sum(encoded[index % len(encoded)][1] for index in range(n_files))


def run(command):
    """(seconds, peak resident MB of all its processes, shared pages counted once) of a command."""
    started = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        peak = executor.submit(find_peak, process)
        process.wait()
        seconds = time.perf_counter() - started
    if process.returncode:
        raise ValueError(f"{command[1]} failed: {process.stderr.read().decode()}")
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


def make_commands(audio_files_dir, saved_data, jobs):
    """{program: command}."""
    ours = [
        sys.executable, str(ROOT / "preprocess.py"), "--audio_files_dir", str(audio_files_dir),
        "--saved_data", str(saved_data), "--jobs", str(jobs),
    ]  # fmt: skip
    serial = [sys.executable, str(Path(__file__)), "--serial", str(audio_files_dir),
              str(saved_data)]  # fmt: skip
    return {"serial librosa loop": serial, "ours": ours}


def time_programs(kind, audio_files_dir, folder, n_files, duration, jobs, n_rounds):
    """A row for each program, the best of some rounds, and one for ours with nothing to do."""
    best = {}
    for round_index in range(n_rounds):
        saved = folder / f"saved{round_index}"
        commands = [*make_commands(audio_files_dir, saved, jobs).items()]
        for program, command in commands[:: -1 if round_index % 2 else 1]:
            saved.mkdir()
            os.sync()  # so that the disk is not busy with what was written before
            found = run(command)
            best[program] = min(best.get(program, found), found)
            if program == "ours":
                found = run(command)
                best["ours, again"] = min(best.get("ours, again", found), found)
            shutil.rmtree(saved)
    rows = []
    for program in ("serial librosa loop", "ours", "ours, again"):
        seconds, peak = best[program]
        rows.append((kind, program, n_files, seconds, n_files / seconds, duration / seconds, peak))
    return rows


def time_steps(kind, audio_files_dir):
    """A row for each step of a track, one process: milliseconds per minute of sound, and share."""
    import scipy.fft
    import soundfile
    import soxr

    seconds, duration = {}, 0.0

    def measure(step, function, *arguments):
        started = time.perf_counter()
        result = function(*arguments)
        seconds[step] = seconds.get(step, 0) + time.perf_counter() - started
        return result

    loader = preprocess.Loader(preprocess.SAMPLE_RATE, preprocess.DURATION, True)
    extractor = preprocess.LogSpectrogramExtractor(preprocess.FRAME_SIZE, preprocess.HOP_LENGTH)
    normaliser = preprocess.MinMaxNormaliser(0, 1)
    n_frames = 1 + loader.n_samples // preprocess.HOP_LENGTH
    frames = np.ones((n_frames, preprocess.FRAME_SIZE), np.float32)
    extract_with_librosa(np.zeros(loader.n_samples, np.float32))  # it imports its parts late
    with tempfile.TemporaryDirectory(dir=audio_files_dir.parent) as folder:
        saver = preprocess.Saver(folder, folder)
        for path in sorted(audio_files_dir.iterdir())[:N_STEP_TRACKS]:
            with soundfile.SoundFile(path) as sound_file:
                rate = sound_file.samplerate
                blocks = measure("decode", lambda: [*read_blocks(sound_file, None)])  # noqa: B023
            signal = np.concatenate(
                measure("mix down", lambda: [mix(block, True) for block, _ in blocks])  # noqa: B023
            )
            if rate != preprocess.SAMPLE_RATE:
                signal = measure("resample", soxr.resample, signal, rate, preprocess.SAMPLE_RATE)
            duration += len(signal) / preprocess.SAMPLE_RATE
            features = []
            for start in range(0, len(signal) - loader.n_samples + 1, loader.n_samples):
                piece = signal[start : start + loader.n_samples]
                log_spectrogram = measure("stft and decibels", extractor.extract, piece)
                features.append(measure("min-max", normaliser.normalise, log_spectrogram))
                measure("(the FFT alone)", scipy.fft.rfft, frames)
                measure("(librosa: stft and decibels)", extract_with_librosa, piece)
            pairs = [(f"{path.name}.{i}.npy", feature) for i, feature in enumerate(features)]
            measure("save", saver.save_features, pairs)
    whole = sum(value for step, value in seconds.items() if not step.startswith("("))
    floor = seconds["decode"] + seconds["(the FFT alone)"]
    seconds["(decode and the FFT alone)"] = floor
    return [
        (kind, step, 1000 * value / (duration / 60), value / whole)
        for step, value in seconds.items()
    ]


def print_table(columns, rows):
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = (f"{v:.3g}" if isinstance(v, float) else str(v) for v in row)
        print("| " + " | ".join(cells) + " |", flush=True)


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--audio_files_dir", default=preprocess.AUDIO_FILES_DIR, help="folder of audio")
    add("--n_files", type=number(int, 1), default=N_FILES, help="files of each kind")
    add("--n_files_memory", type=number(int, 1), default=N_FILES_MEMORY,
        help="files for the growth of memory")  # fmt: skip
    add("--n_rounds", type=number(int, 1), default=N_ROUNDS, help="of which the best counts")
    add("--jobs", type=number(int, -1), default=preprocess.JOBS, help="processes of ours")
    add("--folder", default=tempfile.gettempdir(), help="where the files are written")
    add("--output", default="preprocessing.csv", help="table to write; another for the steps")
    add("--serial", nargs=2, metavar=("AUDIO", "SAVED"), help="run the plain loop alone")
    return parser


def main():
    options = get_parser().parse_args()
    if options.serial:
        preprocess_serially(*options.serial)
        return
    signals = load_sources(options.audio_files_dir)
    rows, steps = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        folder = Path(folder)
        for kind, (ending, _) in KINDS.items():
            duration = write_files(signals, folder / ending, kind, options.n_files)
            rows += time_programs(
                kind, folder / ending, folder, options.n_files, duration, options.jobs,
                options.n_rounds,
            )  # fmt: skip
            steps += time_steps(kind, folder / ending)
        kind, n_files = next(iter(KINDS)), options.n_files_memory
        duration = write_files(signals, folder / "many", kind, n_files)
        os.sync()
        command = make_commands(folder / "many", folder / "saved", options.jobs)["ours"]
        seconds, peak = run(command)
        rows.append((kind, "ours", n_files, seconds, n_files / seconds, duration / seconds, peak))
    write_csv(options.output, COLUMNS, rows)
    output = Path(options.output)
    write_csv(output.with_stem(f"{output.stem}_steps"), STEP_COLUMNS, steps)
    print(f"{os.cpu_count()} cores, {options.jobs if options.jobs > 0 else 'as many'} processes")
    print_table(COLUMNS, rows)
    for kind in KINDS:
        serial, ours, again = (row[3] for row in rows[:-1] if row[0] == kind)
        print(f"{kind}: ours is {serial / ours:.2f} times the serial loop; with nothing to do "
              f"{ours / again:.0f} times as fast as the first time")  # fmt: skip
    print_table(STEP_COLUMNS, steps)
    print(f"librosa takes {time_import():.1f} s to be imported")
    print(f"peak memory with {options.n_files} and with {n_files} files: {rows[1][6]:.0f} and "
          f"{rows[-1][6]:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    exit_with_one_line(main)
