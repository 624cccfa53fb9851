"""Quality and speed of phase recovery beside librosa and PyTorch, in one run.

In:  a folder of audio, and optionally a model folder.
Out: a table on stdout and as CSV, and a figure of quality over time.

    python benchmarks/phase_recovery.py --audio_files_dir my_music --frame 1024 256
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from held_out import load_all

import preprocess
from support import dataset
from support.command_line import exit_with_one_line, number
from support.files import write_csv, write_figure

DURATION = 5.0  # seconds a piece
N_PIECES = 20
FRAMES = ((512, 256), (1024, 256), (2048, 512))  # frame_size, hop_length
KINDS = ("true", "stored", "blurred")
BLUR = (1.5, 1.5)  # standard deviation over bins and frames, of the log spectrogram
LIBROSA_ITERATIONS = (32, 100)
TORCH_ITERATIONS = (32,)
OUR_ITERATIONS = (0, 4, 8, 16, 40, 80, 160)
N_ROUNDS = 2  # of all methods in turns; the best time of each counts
COLUMNS = (
    "frame_size", "hop_length", "kind", "method", "n_iter", "spectral_convergence_db",
    "mel_distance_db", "batch_s_per_s", "single_s_per_s",
)  # fmt: skip


def load_signals(audio_files_dir, n_pieces):
    """The first pieces of DURATION, evenly over the folder's audio; float32 (n_samples,) each."""
    loader = preprocess.Loader(preprocess.SAMPLE_RATE, DURATION, True)
    tracks = load_all(audio_files_dir, lambda path: [*loader.load_pieces(path)])
    signals = [
        piece for pieces in tracks for piece in pieces
        if len(piece) == loader.n_samples and piece.any()
    ]  # fmt: skip
    if not signals:
        raise ValueError(f"{audio_files_dir} holds no piece of {DURATION} s: give longer audio")
    chosen = np.linspace(0, len(signals) - 1, min(n_pieces, len(signals))).astype(int)
    return [signals[index] for index in chosen]


def make_amplitudes(signals, frame_size, hop_length, kind):
    """float32 (1, frame_size / 2 + 1, n_frames) each: as analysed, as stored, or blurred."""
    import librosa
    from scipy.ndimage import gaussian_filter

    if kind == "true":
        return [
            np.abs(librosa.stft(signal, n_fft=frame_size, hop_length=hop_length))[np.newaxis]
            for signal in signals
        ]
    from soundgenerator import SoundGenerator

    extractor = preprocess.LogSpectrogramExtractor(frame_size, hop_length)
    generator = SoundGenerator(None, hop_length, frame_size=frame_size, n_samples=len(signals[0]))
    normaliser = preprocess.MinMaxNormaliser(0, 1)
    amplitudes = []
    for signal in signals:
        log_spectrogram = extractor.extract(signal)
        image = normaliser.normalise(log_spectrogram)
        if kind == "blurred":
            image = gaussian_filter(image, (*BLUR, 0)[: image.ndim])
        min_max = {"min": log_spectrogram.min(), "max": log_spectrogram.max()}
        amplitudes.append(generator.restore_amplitude(image, min_max))
    return amplitudes


def make_reconstructions(signals, model_folder):
    """(amplitudes that a trained model makes of the signals, its frame size and hop length)."""
    from autoencoder import Autoencoder
    from soundgenerator import SoundGenerator

    settings = dataset.load_settings(Path(model_folder) / "settings.json")
    autoencoder = Autoencoder.load(model_folder)
    loader = preprocess.Loader(settings.sample_rate, settings.duration, True)
    extractor = preprocess.LogSpectrogramExtractor(settings.frame_size, settings.hop_length)
    generator = SoundGenerator(
        autoencoder, settings.hop_length, frame_size=settings.frame_size,
        n_samples=loader.n_samples,
    )  # fmt: skip
    amplitudes, kept = [], []
    for signal in signals:
        signal = signal[: loader.n_samples]
        log_spectrogram = extractor.extract(signal)
        image = preprocess.MinMaxNormaliser(0, 1).normalise(log_spectrogram)
        image = image.reshape(*image.shape[:2], -1)
        image = preprocess.resize_spectrogram(image, autoencoder.input_shape[:2])
        reconstructed, _ = autoencoder.reconstruct(image[np.newaxis])
        min_max = {"min": log_spectrogram.min(), "max": log_spectrogram.max()}
        amplitudes.append(generator.restore_amplitude(reconstructed[0], min_max))
        kept.append(signal)
    return kept, amplitudes, settings.frame_size, settings.hop_length


def make_methods(frame_size, hop_length, n_samples):
    """{(method, iterations): (all amplitudes to signals, one amplitude to its signal)}."""
    import librosa

    from soundgenerator import GriffinLim

    transform = {"hop_length": hop_length, "n_fft": frame_size, "length": n_samples}
    methods = {}

    def add(name, n_iter, invert, invert_all=None):
        invert_all = invert_all or (lambda amplitudes: [invert(one) for one in amplitudes])
        methods[name, n_iter] = invert_all, invert

    add("magnitude-only istft", 0, lambda amplitude: librosa.istft(amplitude[0], **transform))
    for n_iter in LIBROSA_ITERATIONS:
        add("librosa", n_iter, lambda amplitude, n_iter=n_iter: librosa.griffinlim(
            amplitude[0], n_iter=n_iter, random_state=0, **transform
        ))  # fmt: skip
    for n_iter in TORCH_ITERATIONS:
        try:
            invert_all = make_torch(frame_size, hop_length, n_samples, n_iter)
        except ModuleNotFoundError:
            print("PyTorch is not installed: its rows are left out", file=sys.stderr)
            break
        add("PyTorch", n_iter, lambda amplitude, run=invert_all: run([amplitude])[0], invert_all)
    for n_iter in OUR_ITERATIONS:
        ours = GriffinLim(frame_size, hop_length, n_iter=n_iter)
        add("ours", n_iter, lambda amplitude, ours=ours: ours.invert(amplitude, n_samples),
            lambda amplitudes, ours=ours: [*ours.invert_all(amplitudes, n_samples)])  # fmt: skip
    return methods


def make_torch(frame_size, hop_length, n_samples, n_iter):
    """Fast Griffin-Lim with torch.stft, the whole batch at once."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    window = torch.hann_window(frame_size)
    transform = {"n_fft": frame_size, "hop_length": hop_length, "window": window}

    def invert_all(amplitudes):
        magnitude = torch.from_numpy(np.concatenate(amplitudes))
        torch.manual_seed(0)
        angles = torch.polar(torch.ones_like(magnitude), 2 * np.pi * torch.rand(magnitude.shape))
        previous = torch.zeros_like(angles)
        for _ in range(n_iter):
            signals = torch.istft(magnitude * angles, length=n_samples, **transform)
            rebuilt = torch.stft(signals, return_complex=True, pad_mode="constant", **transform)
            angles = rebuilt - 0.99 / 1.99 * previous
            angles = angles / (angles.abs() + 1e-16)
            previous = rebuilt
        return [*torch.istft(magnitude * angles, length=n_samples, **transform).numpy()]

    return invert_all


def measure(methods, amplitudes, signals, frame_size, hop_length):
    """Yield ((method, n_iter), convergence, mel distance, seconds in a batch, seconds alone)."""
    from soundgenerator import measure_mel_distance, measure_spectral_convergence

    seconds, sounds = {}, {}
    for invert_all, invert in methods.values():
        invert_all(amplitudes[:1]), invert(amplitudes[0])  # compiles, loads, allocates
    for _ in range(N_ROUNDS):
        for name, (invert_all, invert) in methods.items():
            started = time.perf_counter()
            sounds[name] = invert_all(amplitudes)
            batch = (time.perf_counter() - started) / len(amplitudes)
            alone = []
            for amplitude in amplitudes[:5]:
                started = time.perf_counter()
                invert(amplitude)
                alone.append(time.perf_counter() - started)
            times = batch, min(alone)
            seconds[name] = np.minimum(times, seconds.get(name, times))
    for name, (batch, single) in seconds.items():
        convergence = np.mean([
            measure_spectral_convergence(amplitude, sound, frame_size, hop_length)
            for amplitude, sound in zip(amplitudes, sounds[name], strict=True)
        ])  # fmt: skip
        distance = np.mean([
            measure_mel_distance(signal, sound, preprocess.SAMPLE_RATE)
            for signal, sound in zip(signals, sounds[name], strict=True)
        ])  # fmt: skip
        yield name, float(convergence), float(distance), batch, single


def make_rows(signals, amplitudes, frame_size, hop_length, kind):
    """Yield rows of COLUMNS; times are seconds per second of sound."""
    methods = make_methods(frame_size, hop_length, len(signals[0]))
    duration = len(signals[0]) / preprocess.SAMPLE_RATE
    for name, convergence, distance, batch, single in measure(
        methods, amplitudes, signals, frame_size, hop_length
    ):
        yield dict(zip(COLUMNS, (
            frame_size, hop_length, kind, *name, convergence, distance, batch / duration,
            single / duration,
        ), strict=True))  # fmt: skip


def print_row(row):
    print(
        f"{row['frame_size']:>5}/{row['hop_length']:<5}{row['kind']:<15}{row['method']:<22}"
        f"{row['n_iter']:>4}{row['spectral_convergence_db']:>8.1f} dB"
        f"{row['mel_distance_db']:>7.2f} dB{1000 * row['batch_s_per_s']:>8.2f} ms/s"
        f"{1000 * row['single_s_per_s']:>8.2f} ms/s alone",
        flush=True,
    )


def print_ratios(rows):
    """Compare ours at its default with librosa's iterations, on each kind of spectrogram."""
    from soundgenerator import N_ITER

    found = {(row["frame_size"], row["kind"], row["method"], row["n_iter"]): row for row in rows}
    for (frame_size, kind, method, n_iter), row in found.items():
        ours = found.get((frame_size, kind, "ours", N_ITER))
        if method != "librosa" or not ours:
            continue
        gain = row["spectral_convergence_db"] - ours["spectral_convergence_db"]
        print(
            f"{frame_size}, {kind}: ours at {N_ITER} iterations is {gain:.1f} dB better than "
            f"librosa at {n_iter}, {row['batch_s_per_s'] / ours['batch_s_per_s']:.1f} times as "
            f"fast in a batch, {row['single_s_per_s'] / ours['single_s_per_s']:.1f} times alone"
        )


def plot(path, rows):
    """Write a figure: spectral convergence over time, a panel for each setting and kind."""
    from matplotlib.figure import Figure

    panels = [*dict.fromkeys((row["frame_size"], row["hop_length"], row["kind"]) for row in rows)]
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(4.2 * n_columns, 3.2 * n_rows), layout="constrained")
    for index, panel in enumerate(panels):
        axes = figure.add_subplot(n_rows, n_columns, index + 1)
        chosen = [row for row in rows if (row["frame_size"], row["hop_length"], row["kind"])
                  == panel]  # fmt: skip
        for method in dict.fromkeys(row["method"] for row in chosen):
            points = [
                (1000 * row["batch_s_per_s"], row["spectral_convergence_db"], row["n_iter"])
                for row in chosen if row["method"] == method
            ]  # fmt: skip
            axes.plot(*zip(*[point[:2] for point in points], strict=True), "o-", markersize=4,
                label=method)  # fmt: skip
            for x, y, n_iter in points:
                axes.annotate(n_iter, (x, y), xytext=(2, 4), textcoords="offset points", fontsize=6)
        axes.set(xscale="log", title=f"{panel[0]}/{panel[1]}, {panel[2]}")
        axes.set_xlabel("ms of computing per second of sound")
        axes.set_ylabel("spectral convergence, dB")
        axes.grid(alpha=0.3, which="both")
        if index == 0:
            axes.legend(fontsize=7)
    write_figure(path, figure)


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--audio_files_dir", default=preprocess.AUDIO_FILES_DIR, help="folder of audio")
    add("--n_pieces", type=number(int, 1), default=N_PIECES, help="of 5 s")
    add("--frame", type=number(int, 1), nargs=2, action="append", metavar=("SIZE", "HOP"),
        help="samples, may be repeated, None: 512 256, 1024 256 and 2048 512")  # fmt: skip
    add("--kinds", choices=KINDS, nargs="+", default=KINDS, help="of spectrograms")
    add("--model", help="folder that train.py wrote: its reconstructions, too")
    add("--output", type=Path, default=Path("phase_recovery"), help="the table and figure to "
        "write: this name with .csv and .png")  # fmt: skip
    return parser


def main():
    options = get_parser().parse_args()
    signals = load_signals(options.audio_files_dir, options.n_pieces)
    jobs = [
        (signals, make_amplitudes(signals, *frame, kind), *frame, kind)
        for frame in options.frame or FRAMES
        for kind in options.kinds
    ]
    if options.model:
        jobs.append((*make_reconstructions(signals, options.model), "reconstructed"))
    rows = []
    for job in jobs:
        for row in make_rows(*job):
            print_row(row)
            rows.append(row)
    print_ratios(rows)
    table_path, figure_path = (Path(f"{options.output}{end}") for end in (".csv", ".png"))
    write_csv(table_path, COLUMNS, [row.values() for row in rows])
    plot(figure_path, rows)
    print(f"table in {table_path}, figure in {figure_path}")


if __name__ == "__main__":
    exit_with_one_line(main)
