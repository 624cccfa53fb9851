"""Quality and speed of phase recovery beside librosa and PyTorch.

In:  a folder of audio.
Out: a table on stdout and as CSV, and a figure of quality over time.

    python -m benchmarks.phase_recovery --audio_files_dir my_music --frame 1024 256
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np

from benchmarks.audio import load_all
from generation.evaluation import measure_mel_distance, measure_spectral_convergence
from preprocess import (
    AUDIO_FILES_DIR,
    SAMPLE_RATE,
    Loader,
    LogSpectrogramExtractor,
    MinMaxNormaliser,
)
from support.command_line import make_parser, number, run_script
from support.errors import UserError
from support.files import make_figure, write_csv, write_figure
from support.spectrograms import to_amplitude, to_image, to_log_spectrogram

DURATION = 5.0  # seconds of a piece
N_PIECES = 20
FRAMES = ((512, 256), (1024, 256), (2048, 512))  # frame_size, hop_length
KINDS = ("true", "stored", "blurred")
BLUR = (1.5, 1.5)  # standard deviation over bins and frames, of the log spectrogram
LIBROSA_ITERATIONS = (32, 100)
TORCH_ITERATIONS = (32,)
OUR_ITERATIONS = (0, 4, 8, 16, 40, 80, 160)
N_ROUNDS = 2  # the methods take turns; the best round of each counts
N_ALONE = 5  # pieces that are inverted one by one
COLUMNS = (
    "frame_size",
    "hop_length",
    "kind",
    "method",
    "n_iter",
    "spectral_convergence_db",
    "mel_distance_db",
    "batch_s_per_s",
    "single_s_per_s",
)


class Case(NamedTuple):
    """Spectrograms of one kind, and the signals that they were made from."""

    frame_size: int
    hop_length: int
    kind: str
    signals: list  # float32 (n_samples,) each
    amplitudes: list  # float32 (1, frame_size / 2 + 1, n_frames) each


class Method(NamedTuple):
    """Two ways to the same signals."""

    invert: Callable  # one amplitude to its signal
    invert_all: Callable  # amplitudes to their signals


def load_signals(audio_files_dir, n_pieces, loader):
    """Whole pieces, evenly spaced over the folder's audio; float32 (n_samples,) each."""
    tracks = load_all(audio_files_dir, lambda path: [*loader.load_pieces(path)])
    signals = [
        piece
        for pieces in tracks
        for piece in pieces
        if len(piece) == loader.n_samples and piece.any()
    ]
    if not signals:
        raise UserError(
            f"{audio_files_dir} holds no piece of {loader.duration} s: give longer audio"
        )
    chosen = np.linspace(0, len(signals) - 1, min(n_pieces, len(signals))).astype(int)
    return [signals[index] for index in chosen]


def make_case(signals, frame_size, hop_length, kind):
    """The Case of spectrograms as analysed ("true"), as stored, or blurred."""
    from scipy.ndimage import gaussian_filter

    amplitudes = []
    extractor = LogSpectrogramExtractor(frame_size, hop_length)
    normaliser = MinMaxNormaliser(0, 1)
    for signal in signals:
        if kind == "true":
            stft = librosa.stft(signal, n_fft=frame_size, hop_length=hop_length)
            amplitudes.append(np.abs(stft)[np.newaxis])
            continue
        image, min_max = to_image(extractor.extract(signal), normaliser)
        if kind == "blurred":
            image = gaussian_filter(image, BLUR)
        log_spectrogram = to_log_spectrogram(image, min_max, normaliser)
        amplitudes.append(to_amplitude(log_spectrogram[..., np.newaxis]))
    return Case(frame_size, hop_length, kind, signals, amplitudes)


def make_methods(frame_size, hop_length, n_samples):
    """{(name, iterations): Method}."""
    from support.griffin_lim import GriffinLim

    transform = {"hop_length": hop_length, "n_fft": frame_size, "length": n_samples}
    istft = functools.partial(librosa.istft, **transform)
    methods = {("magnitude-only istft", 0): Method(istft, functools.partial(map, istft))}
    for n_iter in LIBROSA_ITERATIONS:
        invert = functools.partial(librosa.griffinlim, n_iter=n_iter, random_state=0, **transform)
        methods["librosa", n_iter] = Method(invert, functools.partial(map, invert))
    for n_iter in TORCH_ITERATIONS:
        try:
            methods["PyTorch", n_iter] = make_torch(frame_size, hop_length, n_samples, n_iter)
        except ModuleNotFoundError as error:
            print(f"PyTorch is left out: {error}", file=sys.stderr)
            break
    for n_iter in OUR_ITERATIONS:
        griffin_lim = GriffinLim(frame_size, hop_length, n_iter=n_iter)
        methods["ours", n_iter] = Method(
            functools.partial(griffin_lim.invert, n_samples=n_samples),
            functools.partial(griffin_lim.invert_all, n_samples=n_samples),
        )
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
        return torch.istft(magnitude * angles, length=n_samples, **transform).numpy()

    return Method(lambda amplitude: invert_all([amplitude])[0], invert_all)


def run_methods(methods, amplitudes):
    """The signals that each method makes, and its seconds for each piece.

    Returns:
        {name: ([signal], seconds in a batch, seconds alone)}.
    """
    signals, seconds = {}, {}
    for method in methods.values():  # compile, load and allocate
        method.invert(amplitudes[0])
        [*method.invert_all(amplitudes[:1])]
    for _ in range(N_ROUNDS):
        for name, method in methods.items():
            started = time.perf_counter()
            signals[name] = [*method.invert_all(amplitudes)]
            batch = (time.perf_counter() - started) / len(amplitudes)
            alone = []
            for amplitude in amplitudes[:N_ALONE]:
                started = time.perf_counter()
                method.invert(amplitude)
                alone.append(time.perf_counter() - started)
            times = batch, min(alone)
            seconds[name] = np.minimum(times, seconds.get(name, times))
    return {name: (signals[name], *seconds[name]) for name in methods}


def make_rows(case):
    """Yield a row for each method; times are seconds per second of sound."""
    n_samples = len(case.signals[0])
    methods = make_methods(case.frame_size, case.hop_length, n_samples)
    for name, (signals, batch_s, single_s) in run_methods(methods, case.amplitudes).items():
        convergences = [
            measure_spectral_convergence(amplitude, signal, case.frame_size, case.hop_length)
            for amplitude, signal in zip(case.amplitudes, signals, strict=True)
        ]
        distances = [
            measure_mel_distance(recording, signal, SAMPLE_RATE)
            for recording, signal in zip(case.signals, signals, strict=True)
        ]
        yield {
            "frame_size": case.frame_size,
            "hop_length": case.hop_length,
            "kind": case.kind,
            "method": name[0],
            "n_iter": name[1],
            "spectral_convergence_db": float(np.mean(convergences)),
            "mel_distance_db": float(np.mean(distances)),
            "batch_s_per_s": batch_s * SAMPLE_RATE / n_samples,
            "single_s_per_s": single_s * SAMPLE_RATE / n_samples,
        }


def print_row(row):
    print(
        f"{row['frame_size']:>5}/{row['hop_length']:<5}{row['kind']:<15}{row['method']:<22}"
        f"{row['n_iter']:>4}{row['spectral_convergence_db']:>8.1f} dB"
        f"{row['mel_distance_db']:>7.2f} dB{1000 * row['batch_s_per_s']:>8.2f} ms/s"
        f"{1000 * row['single_s_per_s']:>8.2f} ms/s alone",
        flush=True,
    )


def print_ratios(rows):
    """Compare ours at its default with librosa, on each kind of spectrogram."""
    from support.griffin_lim import N_ITER

    ours = {
        get_panel(row): row for row in rows if (row["method"], row["n_iter"]) == ("ours", N_ITER)
    }
    for row in rows:
        if row["method"] != "librosa":
            continue
        our_row = ours[get_panel(row)]
        gain = row["spectral_convergence_db"] - our_row["spectral_convergence_db"]
        batch, single = (row[n] / our_row[n] for n in ("batch_s_per_s", "single_s_per_s"))
        print(
            f"{get_panel(row)}: ours at {N_ITER} iterations is {gain:.1f} dB better than librosa "
            f"at {row['n_iter']}, {batch:.1f} times as fast in a batch, {single:.1f} times alone"
        )


def get_panel(row):
    """The settings and kind of a row, as the title of its panel."""
    return f"{row['frame_size']}/{row['hop_length']}, {row['kind']}"


def plot(path, rows):
    """Write a figure: spectral convergence over time, a panel for each setting and kind."""
    panels = [*dict.fromkeys(map(get_panel, rows))]
    n_columns = min(3, len(panels))
    n_rows = -(-len(panels) // n_columns)
    figure = make_figure(4.2 * n_columns, 3.2 * n_rows)
    grid = figure.subplots(n_rows, n_columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid.flat, panels, strict=False):
        plot_panel(axes, [row for row in rows if get_panel(row) == panel])
        axes.set_title(panel)
    grid[0, 0].legend(fontsize=7)
    write_figure(path, figure)


def plot_panel(axes, rows):
    for method in dict.fromkeys(row["method"] for row in rows):
        chosen = [row for row in rows if row["method"] == method]
        x = [1000 * row["batch_s_per_s"] for row in chosen]
        y = [row["spectral_convergence_db"] for row in chosen]
        axes.plot(x, y, "o-", markersize=4, label=method)
        for row, point in zip(chosen, zip(x, y, strict=True), strict=True):
            offset = {"xytext": (2, 4), "textcoords": "offset points"}
            axes.annotate(row["n_iter"], point, fontsize=6, **offset)
    axes.set(xscale="log", xlabel="ms of computing per second of sound")
    axes.set_ylabel("spectral convergence, dB")
    axes.grid(alpha=0.3, which="both")


def get_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--audio_files_dir", default=AUDIO_FILES_DIR, help="folder of audio")
    add("--n_pieces", type=number(int, 1), default=N_PIECES, help=f"pieces of {DURATION:g} s")
    help_text = "samples; may be repeated; None: 512 256, 1024 256 and 2048 512"
    pair = {"type": number(int, 1), "nargs": 2, "metavar": ("SIZE", "HOP")}
    add("--frame", action="append", help=help_text, **pair)
    add("--kinds", choices=KINDS, nargs="+", default=KINDS, help="kinds of spectrograms")
    help_text = "table and figure to write: this name with .csv and .png"
    add("--output", default="phase_recovery", help=help_text)
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    loader = Loader(SAMPLE_RATE, DURATION, True)
    signals = load_signals(options.audio_files_dir, options.n_pieces, loader)
    cases = [
        make_case(signals, *frame, kind)
        for frame in options.frame or FRAMES
        for kind in options.kinds
    ]
    rows = []
    for case in cases:
        for row in make_rows(case):
            print_row(row)
            rows.append(row)
    print_ratios(rows)
    table_path, figure_path = (Path(f"{options.output}{ending}") for ending in (".csv", ".png"))
    write_csv(table_path, COLUMNS, [row.values() for row in rows])
    plot(figure_path, rows)
    print(f"table in {table_path}, figure in {figure_path}")


if __name__ == "__main__":
    run_script(main)
