"""Held-out error and sound of the autoencoder, beside the mean, PCA and the plain recipe.

In:  a folder that preprocess.py wrote, and the audio it was made from.
Out: a table on stdout and as CSV, and a figure: error over training time, or error and sound over
     the size of the bottleneck.

    python -m benchmarks.reconstruction --saved_data saved_mine --held_out '*/x.wav' --budget_s 240
"""

import contextlib
import csv
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import train
from benchmarks.held_out import Nearness, SoundComparison, Split, measure_error
from preprocess import SAVED_DATA
from support.command_line import make_parser, number, run_script
from support.detail import Detail
from support.files import make_figure, write_csv, write_figure

LATENT_SPACE_DIMS = (128,)
BUDGET_S = 240.0  # of training, for each trained method and bottleneck
PRECISION = "float32"
N_TRIAL_EPOCHS = 3  # that tell how many epochs of ours fill the budget
WINDOW_CELLS = 200_000_000  # of windows for PCA, at most
WINDOWS_PER_PIECE = 20  # for PCA, at most
PLAIN_FILTERS = (32, 64, 128, 256)
PLAIN_LEARNING_RATE = 1e-3
PLAIN_BATCH_SIZE = 32
PLAIN_MOMENTUM = 0.99  # of BatchNormalization: Keras's own
N_CURVE = 24  # held-out errors over a training run
N_COMPARED = 150  # held-out pieces whose sound is compared, at most
METHODS = ("mean", "pca", "pca_windows", "plain", "ours")
COLUMNS = (
    "method",
    "latent_space_dim",
    "held_out_error",
    "training_error",
    *Nearness._fields,
    "seconds",
    "steps",
    "parameters",
    "operations_per_piece",
)


class Fitted(NamedTuple):
    """A method fitted to the training pieces, and what that took."""

    reconstruct: Callable  # images to images, float32 (n, height, width, channels), in [0, 1]
    latent_space_dim: int = 0
    seconds: float = 0.0
    steps: int = 0
    parameters: int = 0
    operations: int = 0  # for one piece
    curve: tuple = ()  # (seconds, held-out error) over its training
    detail: object = None  # that it has learned to draw


def fit_mean(images):
    mean = images.mean(axis=0, dtype=np.float32)
    return Fitted(lambda images: np.broadcast_to(mean, images.shape))


def fit_pca(images, row_weights, latent_space_dim, seed):
    """scikit-learn's PCA of images whose rows are weighted; n images have n - 1 components."""
    from sklearn.decomposition import PCA

    started = time.perf_counter()
    n_components = min(latent_space_dim, len(images) - 1, images[0].size)
    scale = np.sqrt(row_weights)
    pca = PCA(n_components, copy=False, svd_solver="randomized", random_state=seed)
    pca.fit((images * scale).reshape(len(images), -1))
    seconds = time.perf_counter() - started

    def reconstruct(images):
        latents = pca.transform((images * scale).reshape(len(images), -1))
        return (pca.inverse_transform(latents).reshape(images.shape) / scale).clip(0, 1)

    size = pca.components_.size
    return Fitted(reconstruct, n_components, seconds, 0, size + pca.mean_.size, 4 * size)


def fit_pca_windows(windows, row_weights, latent_space_dim, seed):
    """PCA of windows at any frame of the training tracks; drawing them counts."""
    started = time.perf_counter()
    most = max(1, WINDOW_CELLS // math.prod(windows.shape[1:]))
    images = windows.draw(min(most, WINDOWS_PER_PIECE * windows.shape[0]), seed)
    seconds = time.perf_counter() - started
    fitted = fit_pca(images, row_weights, latent_space_dim, seed)
    return fitted._replace(seconds=seconds + fitted.seconds)


def build_plain(input_shape, latent_space_dim, seed):
    """The plain recipe: strides of 2, BatchNormalization at Keras's momentum, a sigmoid."""
    from autoencoder import Autoencoder, keras

    keras.utils.set_random_seed(seed)
    kernels, strides = [3] * len(PLAIN_FILTERS), [2] * len(PLAIN_FILTERS)
    strides[-1] = (2, -(-input_shape[1] // 2 ** (len(strides) - 1)))  # one step: Flatten and Dense
    plain = Autoencoder(input_shape, PLAIN_FILTERS, kernels, strides, latent_space_dim)
    plain.compile()
    for layer in plain.encoder.layers + plain.decoder.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = PLAIN_MOMENTUM
    output = keras.layers.Activation("sigmoid")(plain.model.output)
    model = keras.Model(plain.model.input, output)
    optimizer = keras.optimizers.Adam(PLAIN_LEARNING_RATE)
    model.compile(optimizer, "mse")
    return model, count_operations(plain)


def fit_plain(split, latent_space_dim, budget_s, seed):
    """The plain recipe where its held-out error is lowest: it is unsteady."""
    from benchmarks.error_curve import ErrorCurve

    curve = ErrorCurve(split.x_held_out, split.row_weights, budget_s / N_CURVE, budget_s)
    model, operations = build_plain(split.x_train.shape[1:], latent_space_dim, seed)
    model.fit(
        split.x_train,
        split.x_train,
        batch_size=PLAIN_BATCH_SIZE,
        epochs=10**6,
        verbose=0,
        callbacks=[curve],
    )
    return make_fitted(model, latent_space_dim, operations, curve)


def fit_ours(split, latent_space_dim, budget_s, n_epochs, precision, seed):
    """train.py's autoencoder at the defaults; its start as a PCA counts.

    Args:
        n_epochs: None chooses as many as fill the budget.
    """
    from autoencoder import Autoencoder, choose_architecture
    from benchmarks.error_curve import ErrorCurve
    from training.callbacks import History, make_callbacks

    shape = split.x_train.shape[1:]
    n_steps = Autoencoder(**choose_architecture(shape)).n_steps
    architecture = choose_architecture(
        shape,
        latent_space_dim=max(1, latent_space_dim // n_steps),
        sample_rate=split.settings.sample_rate,
        precision=precision,
    )

    def run(epochs, callbacks):
        with contextlib.redirect_stdout(sys.stderr):  # its epochs are not rows of the table
            return train.train(
                split.windows,
                epochs=epochs,
                architecture=architecture,
                callbacks=callbacks,
                seed=seed,
            )

    if n_epochs is None:
        history, started = History(), time.perf_counter()
        run(N_TRIAL_EPOCHS, [history])
        trial_s = time.perf_counter() - started
        epoch_s = float(np.mean([row["seconds"] for row in history.rows[2:]]))
        start_s = trial_s - N_TRIAL_EPOCHS * epoch_s
        n_epochs = max(2, int((budget_s - start_s) / epoch_s))
    curve = ErrorCurve(split.x_held_out, split.row_weights, budget_s / N_CURVE)
    autoencoder = run(n_epochs, [*make_callbacks(), curve])
    size = autoencoder.latent_space_dim * n_steps
    return make_fitted(autoencoder.model, size, count_operations(autoencoder), curve)


def load_ours(model):
    """The Fitted of a model that train.py trained."""
    from autoencoder import Autoencoder

    autoencoder = Autoencoder.load(model)
    with open(Path(model) / "history.csv", encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    return Fitted(
        lambda images: autoencoder.reconstruct(images)[0],
        autoencoder.latent_space_dim * autoencoder.n_steps,
        sum(float(row["seconds"]) for row in rows),
        0,
        autoencoder.model.count_params(),
        count_operations(autoencoder),
        detail=Detail.load(model),
    )


def make_fitted(model, latent_space_dim, operations, curve):
    """The Fitted of a model that trained along a curve."""
    from benchmarks.error_curve import predict

    return Fitted(
        lambda images: predict(model, images),
        latent_space_dim,
        curve.points[-1][0],
        curve.n_steps,
        model.count_params(),
        operations,
        tuple(curve.points),
    )


def count_operations(autoencoder):
    """Multiplications and additions for one piece in the layers that have kernels."""
    from autoencoder import keras

    total, frames = 0, autoencoder.n_steps * autoencoder.frames_per_step
    for layer in autoencoder.encoder.layers + autoencoder.decoder.layers:
        if not hasattr(layer, "kernel"):
            continue
        size, rows = 2 * np.prod(layer.kernel.shape), 1
        if isinstance(layer, keras.layers.Conv2DTranspose):
            rows = layer.input.shape[1]
            total += size * rows * frames
            frames *= layer.strides[1]
        else:
            if isinstance(layer, keras.layers.Conv2D):
                rows = layer.output.shape[1]
                frames //= layer.strides[1]
            total += size * rows * frames
    return int(total)


def fit_methods(split, latent_space_dims, methods, budget_s, n_epochs, precision, seed, model):
    """Yield (name, Fitted) for every method and bottleneck; ours is loaded if there is a model."""
    if "mean" in methods:
        yield "mean spectrogram", fit_mean(split.x_train)
    for size in latent_space_dims:
        if "pca" in methods:
            yield "PCA", fit_pca(split.x_train, split.row_weights, size, seed)
        if "pca_windows" in methods:
            yield "PCA of windows", fit_pca_windows(split.windows, split.row_weights, size, seed)
        if "plain" in methods:
            yield "plain recipe", fit_plain(split, size, budget_s, seed)
        if "ours" in methods and model:
            yield "ours", load_ours(model)
        elif "ours" in methods:
            yield "ours", fit_ours(split, size, budget_s, n_epochs, precision, seed)


def make_bounds(split, comparison):
    """Yield the rows of the untouched spectrograms: what no autoencoder can beat."""
    for inversion, measure in (
        ("zero-phase istft", comparison.measure_zero_phase),
        ("Griffin-Lim", comparison.measure),
    ):
        row = dict.fromkeys(COLUMNS, 0)
        row["method"] = f"untouched, {inversion}"
        yield row | measure(split.x_held_out)._asdict()


def make_rows(name, fitted, split, comparison, sounds):
    """Yield the errors of the held-out and of as many training pieces, the sound, and the effort;
    then the same with the sound of detail, if it is drawn.

    Args:
        sounds: folder to write into, or None.
    """
    reconstructed = fitted.reconstruct(split.x_held_out)
    count = min(len(split.x_train), len(split.x_held_out))
    chosen = split.x_train[np.linspace(0, len(split.x_train) - 1, count).astype(int)]
    chosen = chosen.astype(np.float32)
    row = {
        "method": name,
        "latent_space_dim": fitted.latent_space_dim,
        "held_out_error": measure_error(split.x_held_out, reconstructed, split.row_weights),
        "training_error": measure_error(chosen, fitted.reconstruct(chosen), split.row_weights),
        "seconds": fitted.seconds,
        "steps": fitted.steps,
        "parameters": fitted.parameters,
        "operations_per_piece": fitted.operations,
    }
    for detail in (None, fitted.detail) if fitted.detail else (None,):
        row["method"] = f"{name}, with detail" if detail else name
        folder = f"{row['method'].replace(',', '')} {fitted.latent_space_dim}".replace(" ", "_")
        nearness = comparison.measure(reconstructed, detail, sounds and sounds / folder)
        full = row | nearness._asdict()
        yield {column: full[column] for column in COLUMNS}


def print_row(row):
    print(
        f"{row['method']:<28}{row['latent_space_dim'] or '':>6}{row['held_out_error']:>10.6f}"
        f"{row['training_error']:>10.6f}{row['mel_distance_db']:>8.2f} dB"
        f"{row['pooled_mel_distance_db']:>8.2f} dB{row['level_db']:>+8.2f} dB"
        f"{row['seconds']:>8.1f} s"
        f"{row['steps']:>7}{row['parameters'] / 1e6:>8.2f} M"
        f"{row['operations_per_piece'] / 1e6:>9.1f} M",
        flush=True,
    )


def print_speedup(curves):
    """Say how much sooner ours reached the lowest error of the plain recipe."""
    for (method, size), curve in curves.items():
        ours = curves.get(("ours", size))
        if method != "plain recipe" or not ours:
            continue
        seconds, error = min(curve, key=lambda point: point[1])
        reached = next((s for s, e in ours if e <= error), None)
        if reached:
            print(
                f"latent {size}: the plain recipe gets to {error:.5f} in {seconds:.0f} s; "
                f"ours is there after {reached:.1f} s, {seconds / reached:.0f} times sooner"
            )


def plot(path, rows, curves):
    """Write a figure: error over time for one bottleneck size, else error and sound over sizes."""
    sizes = sorted({row["latent_space_dim"] for row in rows if row["method"] == "ours"})
    figure = make_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    if len(sizes) > 1:
        plot_over_size(left, rows, sizes, "held_out_error", "mean squared error, held out")
        plot_over_size(right, rows, sizes, "mel_distance_db", "mel distance, dB, held out")
    else:
        plot_over_time(left, rows, curves)
        right.barh([row["method"] for row in rows], [row["mel_distance_db"] for row in rows])
        right.invert_yaxis()
        right.bar_label(right.containers[0], fmt="%.2f", padding=3)
        right.set(xlabel="mel distance, dB, held out")
        right.margins(x=0.12)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    if left.get_legend_handles_labels()[0]:
        left.legend(fontsize=8)
    write_figure(path, figure)


def plot_over_size(axes, rows, sizes, column, label):
    for method in dict.fromkeys(row["method"] for row in rows if row["latent_space_dim"]):
        chosen = [row for row in rows if row["method"] == method]
        x = [row["latent_space_dim"] for row in chosen]
        axes.plot(x, [row[column] for row in chosen], "o-", label=method)
    axes.set(xlabel="latent_space_dim", ylabel=label, xscale="log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()


def plot_over_time(axes, rows, curves):
    for (method, _), curve in curves.items():
        axes.loglog(*zip(*curve, strict=True), "o-", markersize=3, label=method)
    untrained = [row for row in rows if row["method"].startswith(("mean", "PCA"))]
    for row, style in zip(untrained, (":", "--", "-."), strict=False):
        axes.axhline(row["held_out_error"], color="grey", linestyle=style, label=row["method"])
    axes.set(xlabel="seconds of training", ylabel="mean squared error, held out")


def get_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--saved_data", default=SAVED_DATA, help="folder that preprocess.py wrote")
    help_text = "tracks not to train on, such as '*_[0-4].wav'; None: a seeded tenth"
    add("--held_out", nargs="+", metavar="PATTERN", help=help_text)
    help_text = (
        "folder that train.py wrote, in place of training ours; without --held_out, its split"
    )
    add("--model", metavar="FOLDER", help=help_text)
    size = {"type": number(int, 1)}
    help_text = "bottlenecks to compare: numbers for a piece"
    add("--latent_space_dims", nargs="+", default=LATENT_SPACE_DIMS, help=help_text, **size)
    help_text = "seconds of training for each trained method"
    add("--budget_s", type=number(float, 1), default=BUDGET_S, help=help_text)
    add("--epochs", help="epochs of ours; None: as many as fill the budget", **size)
    precisions = ["float32", "bfloat16", "float16"]
    add("--precision", choices=precisions, default=PRECISION, help="arithmetic of ours")
    add("--methods", choices=METHODS, nargs="+", default=METHODS, help="methods to compare")
    help_text = "of the weights, the order and the split"
    add("--seed", type=number(int, 0, 2**32 - 1), default=train.SEED, help=help_text)
    help_text = "folder to write the compared sounds into, a folder for each method"
    add("--sounds", type=Path, metavar="FOLDER", help=help_text)
    help_text = "table and figure to write: this name with .csv and .png"
    add("--output", default="reconstruction", help=help_text)
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    split = Split(options.saved_data, options.held_out, options.seed, options.model)
    comparison = SoundComparison(split, N_COMPARED)
    print(
        f"{len(split.x_train)} training pieces, {len(split.x_held_out)} held out; "
        f"ours in {options.precision}"
    )
    print(f"columns: {', '.join(COLUMNS)}")
    rows, curves = [], {}
    if options.sounds:
        comparison.save_recordings(options.sounds / "recorded")
        comparison.measure(split.x_held_out, save_dir=options.sounds / "untouched")
    for row in make_bounds(split, comparison):
        print_row(row)
        rows.append(row)
    for method, fitted in fit_methods(
        split,
        options.latent_space_dims,
        options.methods,
        options.budget_s,
        options.epochs,
        options.precision,
        options.seed,
        options.model,
    ):
        for row in make_rows(method, fitted, split, comparison, options.sounds):
            print_row(row)
            rows.append(row)
        if fitted.curve:
            curves[method, fitted.latent_space_dim] = fitted.curve
    print_speedup(curves)
    table_path, figure_path = (Path(f"{options.output}{ending}") for ending in (".csv", ".png"))
    write_csv(table_path, COLUMNS, [row.values() for row in rows])
    plot(figure_path, rows, curves)
    print(f"table in {table_path}, figure in {figure_path}")


if __name__ == "__main__":
    run_script(main)
