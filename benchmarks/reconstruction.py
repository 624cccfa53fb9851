"""Held-out error of the autoencoder, seen and heard, beside the mean, PCA and the plain recipe.

In:  a folder that preprocess.py wrote, and the audio it was made from.
Out: a table on stdout and as CSV, and a figure: error over training time, error and sound over
     the size of the bottleneck.

    python benchmarks/reconstruction.py --saved_data saved_mine --held_out '*/x.wav' --budget_s 240
"""

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from held_out import Ear, Split, measure_error

import preprocess
import train
from support.command_line import exit_with_one_line, number
from support.files import write_csv, write_figure

LATENT_SPACE_DIMS = (128,)
BUDGET_S = 240.0  # of training, for each trained method and bottleneck
PLAIN_FILTERS = (32, 64, 128, 256)
PLAIN_LEARNING_RATE = 1e-3
PLAIN_BATCH_SIZE = 32
PLAIN_MOMENTUM = 0.99  # of BatchNormalization: Keras's own
N_CURVE = 24  # held-out errors over a training run
N_HEARD = 60  # held-out pieces whose sound is compared, at most
METHODS = ("mean", "pca", "pca_windows", "plain", "ours")
COLUMNS = (
    "method", "latent_space_dim", "held_out_mse", "training_mse", "mel_distance_db", "seconds",
    "steps", "parameters", "operations_per_piece",
)  # fmt: skip


class Fitted(NamedTuple):
    """A method fitted to the training pieces, and what that took."""

    reconstruct: Callable  # images to images, float32 (n, height, width, channels), in [0, 1]
    latent_space_dim: int = 0
    seconds: float = 0.0
    steps: int = 0
    parameters: int = 0
    operations: int = 0  # a piece
    curve: tuple = ()  # (seconds, held-out error) over its training


class Curve:
    """Held-out errors over the seconds of a training run, the measuring itself left out.

    Args:
        x_held: what they are measured on.
        keeps_best: whether the model ends with the weights of its lowest point.
    """

    def __init__(self, x_held, keeps_best=False):
        self.model = None
        self.x_held = x_held
        self.keeps_best = keeps_best
        self.weights = None  # of the lowest point
        self.points = []
        self.n_steps = 0
        self.paused = 0.0
        self.started = time.perf_counter()

    def get_seconds(self):
        return time.perf_counter() - self.started - self.paused

    def measure(self):
        seconds, reached = self.get_seconds(), time.perf_counter()
        error = measure_error(self.x_held, predict(self.model, self.x_held))
        if self.keeps_best and error < min((e for _, e in self.points), default=math.inf):
            self.weights = self.model.get_weights()
        self.points.append((seconds, error))
        self.paused += time.perf_counter() - reached

    def finish(self, latent_space_dim):
        """The Fitted that trained along this curve."""
        self.measure()
        model = self.model
        if self.weights:
            model.set_weights(self.weights)
        return Fitted(
            lambda images: predict(model, images), latent_space_dim, self.points[-1][0],
            self.n_steps, model.count_params(), count_operations(model), tuple(self.points),
        )  # fmt: skip


def predict(model, images):
    """What a model makes of images, clipped to [0, 1], a batch at a time."""
    from autoencoder import predict_in_batches

    return predict_in_batches(model, images).clip(0, 1)


def fit_mean(split):
    mean = split.x_train.mean(axis=0)
    return Fitted(lambda images: np.broadcast_to(mean, images.shape))


def fit_pca(images, latent_space_dim, seed):
    """scikit-learn's PCA; fewer images than dimensions have fewer components."""
    from sklearn.decomposition import PCA

    started = time.perf_counter()
    n_components = min(latent_space_dim, len(images) - 1, images[0].size)
    pca = PCA(n_components, svd_solver="randomized", random_state=seed)
    pca.fit(images.reshape(len(images), -1))
    seconds = time.perf_counter() - started

    def reconstruct(images):
        latents = pca.transform(images.reshape(len(images), -1))
        return pca.inverse_transform(latents).reshape(images.shape).clip(0, 1)

    size = pca.components_.size
    return Fitted(reconstruct, n_components, seconds, 0, size + pca.mean_.size, 4 * size)


def fit_pca_windows(split, latent_space_dim, seed):
    """PCA of windows at any frame of the training tracks, the drawing of them included."""
    started = time.perf_counter()
    images = split.windows.draw_start(np.random.default_rng(seed))
    seconds = time.perf_counter() - started
    fitted = fit_pca(images, latent_space_dim, seed)
    return fitted._replace(seconds=seconds + fitted.seconds)


def build_plain(input_shape, latent_space_dim, seed):
    """The plain recipe: strides of 2, BatchNormalization at Keras's momentum, a sigmoid."""
    from autoencoder import Autoencoder, choose_jit, keras

    keras.utils.set_random_seed(seed)
    n_layers = len(PLAIN_FILTERS)
    plain = Autoencoder(
        input_shape, PLAIN_FILTERS, [3] * n_layers, [2] * n_layers, latent_space_dim
    )
    for layer in plain.encoder.layers + plain.decoder.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = PLAIN_MOMENTUM
    output = keras.layers.Activation("sigmoid")(plain.model.output)
    model = keras.Model(plain.model.input, output)
    optimizer = keras.optimizers.Adam(PLAIN_LEARNING_RATE)
    model.compile(optimizer, "mse", jit_compile=choose_jit())
    return model


def fit_plain(split, latent_space_dim, budget_s, seed):
    """The plain recipe at its best in its budget, which is stopped in the middle of an epoch."""
    from autoencoder import keras

    curve = Curve(split.x_held, keeps_best=True)  # it is unsteady: no chance is to speak for us
    model = curve.model = build_plain(split.x_train.shape[1:], latent_space_dim, seed)

    def end_batch(batch, logs=None):
        curve.n_steps += 1
        seconds = curve.get_seconds()
        model.stop_training = seconds >= budget_s
        if not model.stop_training and seconds >= (len(curve.points) + 1) * budget_s / N_CURVE:
            curve.measure()

    model.fit(
        split.x_train, split.x_train, batch_size=PLAIN_BATCH_SIZE, epochs=10**6, verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_train_batch_end=end_batch)],
    )  # fmt: skip
    return curve.finish(latent_space_dim)


def train_ours(split, latent_space_dim, precision, n_epochs, seed, callback):
    """train.train's autoencoder, with the defaults but for the number of epochs."""
    with contextlib.redirect_stdout(sys.stderr):  # its epochs are not of our table
        return train.train(
            split.x_train, epochs=n_epochs, windows=split.windows, precision=precision,
            latent_space_dim=latent_space_dim, seed=seed, callbacks=[callback],
        )  # fmt: skip


def choose_epochs(split, latent_space_dim, budget_s, precision, seed):
    """How many epochs of ours fill the budget, by a trial of three."""
    from autoencoder import keras

    ends, started = [], time.perf_counter()
    callback = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
    )
    train_ours(split, latent_space_dim, precision, 3, seed, callback)
    epoch_s = (ends[2] - ends[0]) / 2
    return max(2, int((budget_s - (ends[0] - started - epoch_s)) / epoch_s))


def fit_ours(split, latent_space_dim, precision, n_epochs, seed):
    """Ours, the start from principal components included in its time."""
    from autoencoder import keras

    curve = Curve(split.x_held)

    def start(logs=None):
        curve.model = callback.model
        curve.measure()

    def end_batch(batch, logs=None):
        curve.n_steps += 1

    def end_epoch(epoch, logs=None):
        if (epoch + 1) % math.ceil(n_epochs / N_CURVE) == 0:
            curve.measure()

    callback = keras.callbacks.LambdaCallback(
        on_train_begin=start, on_train_batch_end=end_batch, on_epoch_end=end_epoch
    )
    trained = train_ours(split, latent_space_dim, precision, n_epochs, seed, callback)
    curve.model = trained.model
    return curve.finish(latent_space_dim)


def count_operations(model):
    """Multiplications and additions of one piece through the layers with kernels."""
    from autoencoder import keras

    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            total += count_operations(layer)
        elif isinstance(layer, keras.layers.Conv2DTranspose):
            total += 2 * np.prod(layer.kernel.shape) * np.prod(layer.input.shape[1:3])
        elif isinstance(layer, keras.layers.Conv2D):
            total += 2 * np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:3])
        elif isinstance(layer, keras.layers.Dense):
            total += 2 * np.prod(layer.kernel.shape)
    return int(total)


def compare(split, latent_space_dims, methods, budget_s, n_epochs, precision, seed):
    """Yield (name, Fitted) for every method and bottleneck."""
    if "mean" in methods:
        yield "mean spectrogram", fit_mean(split)
    for dim in latent_space_dims:
        if "pca" in methods:
            yield "PCA", fit_pca(split.x_train, dim, seed)
        if "pca_windows" in methods:
            yield "PCA of windows", fit_pca_windows(split, dim, seed)
        if "plain" in methods:
            yield "plain recipe", fit_plain(split, dim, budget_s, seed)
        if "ours" in methods:
            count = n_epochs or choose_epochs(split, dim, budget_s, precision, seed)
            yield "ours", fit_ours(split, dim, precision, count, seed)


def make_row(name, fitted, split, ear):
    """A row of COLUMNS: the errors of held-out and of as many training pieces, and the sound."""
    held = fitted.reconstruct(split.x_held)
    count = min(len(split.x_train), len(split.x_held))
    shown = split.x_train[np.linspace(0, len(split.x_train) - 1, count).astype(int)]
    return dict(zip(COLUMNS, (
        name, fitted.latent_space_dim, measure_error(split.x_held, held),
        measure_error(shown, fitted.reconstruct(shown)), ear.measure(held), fitted.seconds,
        fitted.steps, fitted.parameters, fitted.operations,
    ), strict=True))  # fmt: skip


def measure_bounds(split, ear):
    """The rows of the untouched spectrograms, inverted as earlier programs did and as we do."""
    for method, invert in (("zero-phase istft", ear.invert_zero_phase), ("Griffin-Lim", None)):
        row = dict.fromkeys(COLUMNS, 0)
        row["method"] = f"untouched, {method}"
        row["mel_distance_db"] = ear.measure(split.x_held, invert)
        yield row


def print_row(row):
    print(
        f"{row['method']:<28}{row['latent_space_dim'] or '':>6}{row['held_out_mse']:>10.6f}"
        f"{row['training_mse']:>10.6f}{row['mel_distance_db']:>8.2f} dB{row['seconds']:>8.1f} s"
        f"{row['steps']:>7}{row['parameters'] / 1e6:>8.2f} M"
        f"{row['operations_per_piece'] / 1e6:>9.1f} M",
        flush=True,
    )


def print_speedup(curves):
    """Say how much sooner ours reached the lowest error of the plain recipe."""
    for (method, dim), curve in curves.items():
        ours = curves.get(("ours", dim))
        if method != "plain recipe" or not ours:
            continue
        seconds, error = min(curve, key=lambda point: point[1])
        reached = next((s for s, e in ours if e <= error), None)
        if reached:
            print(
                f"latent {dim}: the plain recipe gets to {error:.5f} in {seconds:.0f} s; "
                f"ours is there after {reached:.1f} s, {seconds / reached:.0f} times sooner"
            )


def plot(path, rows, curves):
    """Write a figure: error over time for one bottleneck size, else both measures over the size."""
    from matplotlib.figure import Figure

    dims = sorted({row["latent_space_dim"] for row in rows if row["method"] == "ours"})
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if len(dims) > 1:
        plot_over_size(left, rows, dims, "held_out_mse", "mean squared error, held out")
        plot_over_size(right, rows, dims, "mel_distance_db", "mel distance, dB, held out")
    else:
        plot_over_time(left, rows, curves)
        right.barh([row["method"] for row in rows], [row["mel_distance_db"] for row in rows])
        right.invert_yaxis()
        right.bar_label(right.containers[0], fmt="%.2f", padding=3)
        right.set(xlabel="mel distance, dB, held out")
        right.margins(x=0.12)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    left.legend(fontsize=8)
    write_figure(path, figure)


def plot_over_size(axes, rows, dims, column, label):
    for method in dict.fromkeys(row["method"] for row in rows if row["latent_space_dim"]):
        chosen = [row for row in rows if row["method"] == method]
        sizes = [row["latent_space_dim"] for row in chosen]
        axes.plot(sizes, [row[column] for row in chosen], "o-", label=method)
    axes.set(xlabel="latent_space_dim", ylabel=label, xscale="log")
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()


def plot_over_time(axes, rows, curves):
    for (method, _), curve in curves.items():
        axes.loglog(*zip(*curve, strict=True), "o-", markersize=3, label=method)
    untrained = [row for row in rows if row["method"].startswith(("mean", "PCA"))]
    for row, style in zip(untrained, (":", "--", "-."), strict=False):
        axes.axhline(row["held_out_mse"], color="grey", linestyle=style, label=row["method"])
    axes.set(xlabel="seconds of training", ylabel="mean squared error, held out")


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--saved_data", default=preprocess.SAVED_DATA, help="folder that preprocess.py wrote")
    add("--held_out", nargs="+", metavar="PATTERN",
        help="tracks not to train on, such as '*_[0-4].wav', None: a seeded tenth")  # fmt: skip
    add("--latent_space_dims", type=number(int, 1), nargs="+", default=LATENT_SPACE_DIMS,
        help="bottlenecks to compare")  # fmt: skip
    add("--budget_s", type=number(float, 1), default=BUDGET_S, help="seconds a trained method")
    add("--epochs", type=number(int, 1), help="of ours, None: as many as fill the budget")
    add("--methods", choices=METHODS, nargs="+", default=METHODS, help="rows to make")
    add("--seed", type=number(int, 0, 2**32 - 1), default=train.SEED, help="of all chance")
    add("--output", type=Path, default=Path("reconstruction"), help="the table and figure to "
        "write: this name with .csv and .png")  # fmt: skip
    return parser


def main():
    options = get_parser().parse_args()
    from autoencoder import choose_precision

    split = Split(options.saved_data, options.held_out, options.seed)
    ear = Ear(split, N_HEARD)
    precision = choose_precision()  # once: a busy machine might choose another the next time
    print(
        f"{len(split.x_train)} training pieces, {len(split.x_held)} held out; ours in {precision}"
    )
    print(f"columns: {', '.join(COLUMNS)}")
    rows, curves = [], {}
    for row in measure_bounds(split, ear):
        rows.append(row)
        print_row(row)
    compared = compare(
        split, options.latent_space_dims, options.methods, options.budget_s, options.epochs,
        precision, options.seed,
    )  # fmt: skip
    for method, fitted in compared:
        rows.append(make_row(method, fitted, split, ear))
        print_row(rows[-1])
        if fitted.curve:
            curves[method, fitted.latent_space_dim] = fitted.curve
    print_speedup(curves)
    table_path, figure_path = (Path(f"{options.output}{end}") for end in (".csv", ".png"))
    write_csv(table_path, COLUMNS, [row.values() for row in rows])
    plot(figure_path, rows, curves)
    print(f"table in {table_path}, figure in {figure_path}")


if __name__ == "__main__":
    exit_with_one_line(main)
