"""Held-out error and sound of the autoencoder, beside the mean and PCA.

In:  a folder that preprocess.py wrote, and the audio it was made from.
Out: a table on stdout and as CSV.

    python -m benchmarks.reconstruction --saved_data saved_mine --held_out '*/x.wav'
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
from support.files import write_csv

LATENT_SPACE_DIMS = (128,)
PRECISION = "float32"
WINDOW_CELLS = 200_000_000  # of windows for PCA, at most
WINDOWS_PER_PIECE = 20  # for PCA, at most
N_COMPARED = 150  # held-out pieces whose sound is compared, at most
METHODS = ("mean", "pca", "pca_windows", "ours")
COLUMNS = (
    "method",
    "latent_space_dim",
    "held_out_error",
    "training_error",
    *Nearness._fields,
    "seconds",
    "parameters",
    "operations_per_piece",
)


class Fitted(NamedTuple):
    """A method fitted to the training pieces, and what that took."""

    reconstruct: Callable  # images to images, float32 (n, height, width, channels), in [0, 1]
    latent_space_dim: int = 0
    seconds: float = 0.0
    parameters: int = 0
    operations: int = 0  # for one piece
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
    return Fitted(reconstruct, n_components, seconds, size + pca.mean_.size, 4 * size)


def fit_pca_windows(windows, row_weights, latent_space_dim, seed):
    """PCA of windows at any frame of the training tracks; drawing them counts."""
    started = time.perf_counter()
    most = max(1, WINDOW_CELLS // math.prod(windows.shape[1:]))
    images = windows.draw(min(most, WINDOWS_PER_PIECE * windows.shape[0]), seed)
    seconds = time.perf_counter() - started
    fitted = fit_pca(images, row_weights, latent_space_dim, seed)
    return fitted._replace(seconds=seconds + fitted.seconds)


def fit_ours(split, latent_space_dim, n_epochs, precision, seed):
    """train.py's autoencoder at the defaults; its start as a PCA counts.

    Args:
        n_epochs: None: as many as train.py chooses.
    """
    from autoencoder import Autoencoder, choose_architecture

    shape = split.x_train.shape[1:]
    n_steps = Autoencoder(**choose_architecture(shape)).n_steps
    architecture = choose_architecture(
        shape,
        latent_space_dim=max(1, latent_space_dim // n_steps),
        sample_rate=split.settings.sample_rate,
        precision=precision,
    )
    started = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # its epochs are not rows of the table
        autoencoder = train.train(
            split.windows, epochs=n_epochs, architecture=architecture, seed=seed
        )
    return make_fitted(autoencoder, time.perf_counter() - started)


def load_ours(model):
    """The Fitted of a model that train.py trained."""
    from autoencoder import Autoencoder

    autoencoder = Autoencoder.load(model)
    with open(Path(model) / "history.csv", encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    seconds = sum(float(row["seconds"]) for row in rows)
    return make_fitted(autoencoder, seconds, Detail.load(model))


def make_fitted(autoencoder, seconds, detail=None):
    return Fitted(
        lambda images: autoencoder.reconstruct(images)[0],
        autoencoder.latent_space_dim * autoencoder.n_steps,
        seconds,
        autoencoder.model.count_params(),
        count_operations(autoencoder),
        detail,
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


def fit_methods(split, options):
    """Yield (name, Fitted) for every method and bottleneck; ours is loaded if there is a model."""
    methods, seed = options.methods, options.seed
    if "mean" in methods:
        yield "mean spectrogram", fit_mean(split.x_train)
    for size in options.latent_space_dims:
        if "pca" in methods:
            yield "PCA", fit_pca(split.x_train, split.row_weights, size, seed)
        if "pca_windows" in methods:
            yield "PCA of windows", fit_pca_windows(split.windows, split.row_weights, size, seed)
        if "ours" in methods and options.model:
            yield "ours", load_ours(options.model)
        elif "ours" in methods:
            yield "ours", fit_ours(split, size, options.epochs, options.precision, seed)


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
        "parameters": fitted.parameters,
        "operations_per_piece": fitted.operations,
    }
    for detail in (None, fitted.detail) if fitted.detail else (None,):
        row["method"] = f"{name}, with detail" if detail else name
        folder = f"{row['method'].replace(',', '')} {fitted.latent_space_dim}".replace(" ", "_")
        nearness = comparison.measure(reconstructed, detail, sounds and sounds / folder)
        full = row | nearness._asdict()
        yield {column: full[column] for column in COLUMNS}


def make_table(split, comparison, options):
    """Yield all rows."""
    yield from make_bounds(split, comparison)
    for method, fitted in fit_methods(split, options):
        yield from make_rows(method, fitted, split, comparison, options.sounds)


def print_row(row):
    print(
        f"{row['method']:<28}{row['latent_space_dim'] or '':>6}{row['held_out_error']:>10.6f}"
        f"{row['training_error']:>10.6f}{row['mel_distance_db']:>8.2f} dB"
        f"{row['pooled_mel_distance_db']:>8.2f} dB{row['level_db']:>+8.2f} dB"
        f"{row['seconds']:>8.1f} s"
        f"{row['parameters'] / 1e6:>8.2f} M"
        f"{row['operations_per_piece'] / 1e6:>9.1f} M",
        flush=True,
    )


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
    add("--epochs", help="epochs of ours; None: as many as train.py chooses", **size)
    precisions = ["float32", "bfloat16", "float16"]
    add("--precision", choices=precisions, default=PRECISION, help="arithmetic of ours")
    add("--methods", choices=METHODS, nargs="+", default=METHODS, help="methods to compare")
    help_text = "of the weights, the order and the split"
    add("--seed", type=number(int, 0, 2**32 - 1), default=train.SEED, help=help_text)
    help_text = "folder to write the compared sounds into, a folder for each method"
    add("--sounds", type=Path, metavar="FOLDER", help=help_text)
    add("--output", type=Path, default=Path("reconstruction.csv"), help="table to write")
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
    if options.sounds:
        comparison.save_recordings(options.sounds / "recorded")
        comparison.measure(split.x_held_out, save_dir=options.sounds / "untouched")
    rows = []
    for row in make_table(split, comparison, options):
        print_row(row)
        rows.append(row)
    write_csv(options.output, COLUMNS, [row.values() for row in rows])
    print(f"table in {options.output}")


if __name__ == "__main__":
    run_script(main)
