"""Fit the autoencoder to the spectrograms that preprocess.py wrote.

In:  saved_data/spectrograms/**/*.npy.
Out: model/parameters.json, model.weights.h5, settings.json, history.csv, history.png, latents.npz.

    python train.py --saved_data saved_data --model model --epochs 100
"""

import argparse
import csv
import io
import math
import time
from pathlib import Path

import numpy as np

import preprocess
from preprocess import number

LEARNING_RATE = 2e-3  # the peak, after a warm-up and before a cosine decay to zero
BATCH_SIZE = 16
EPOCHS = 100
SPECTOGRAM_PATH = "saved_data/spectrograms"
TARGET_SHAPE = (512, 256)  # bins, frames: what preprocess.py writes by default, not resized then
MODEL = "model"

CONV_FILTERS = (160, 320)  # of the layer that spans all bins, and of each one after it
LAST_WIDTH = 16  # frames left, about, in front of the bottleneck
PRECISION = "auto"
LATENT_SPACE_DIM = 512  # benchmarks/reconstruction.py: 1024 sounds hardly better
VALIDATION_SPLIT = 0.1  # share of the tracks
WARM_UP = 0.05  # share of the steps
SHIFT_WINDOWS = True
SEED = 0

START_WINDOWS = 1500  # drawn for the principal components that training starts from
START_WINDOWS_PER_PIECE = 20  # at most
MAX_STRETCH = 0.02  # of a window's time and of its frequencies, as a logarithm: up to 2 %
EDGE_FRAMES = 2  # how far a track without a next piece is shifted, against its floor


class Windows:
    """Draws training windows that start at any frame of a track, not only where pieces start.

    A window runs from a piece on into the next one of its track, in decibels, a little faster or
    slower and higher or lower than recorded (each cell is the nearest one's copy), and gets a
    range and floor of its own, as preprocess.py would have given it.

    Args:
        images: float32 (n, height, width, channels), in [0, 1], in the order of the keys.
        keys: str (n,), as preprocess.list_keys gives them.
        min_max_values: {key: {"min": dB, "max": dB}}.
        top_db: dB kept below a window's peak.
    """

    def __init__(self, images, keys, min_max_values, top_db=preprocess.TOP_DB):
        self.images = images
        self.low = np.array([min_max_values[key]["min"] for key in keys], np.float32)
        self.high = np.array([min_max_values[key]["max"] for key in keys], np.float32)
        self.top_db = top_db
        # Pieces of one track are neighbours in the list, in the order of their segments.
        tracks = [preprocess.get_track(key) for key in keys]
        self.goes_on = [a == b for a, b in zip(tracks, tracks[1:], strict=False)] + [False]

    def draw(self, indices, rng, max_stretch=MAX_STRETCH):
        """One window near each piece, float32 (len(indices), height, width, channels)."""
        return np.stack([self._draw_one(index, rng, max_stretch) for index in indices])

    def draw_start(self, rng):
        """Unstretched windows for the principal components that training starts from."""
        count = min(START_WINDOWS, START_WINDOWS_PER_PIECE * len(self.images))
        return self.draw(rng.integers(len(self.images), size=count), rng, max_stretch=0)

    def _draw_one(self, index, rng, max_stretch):
        height, width, _ = shape = self.images.shape[1:]
        bins, frames = (
            np.rint(np.arange(n) * np.exp(rng.uniform(-max_stretch, max_stretch))).astype(int)
            for n in (height, width)
        )
        if self.goes_on[index]:
            frames = np.minimum(frames + rng.integers(width), 2 * width - 1)
        else:
            frames += rng.integers(-EDGE_FRAMES, EDGE_FRAMES + 1)
        window = np.full(shape, self.low[index])  # (height, width, channels), dB
        for piece, first in [(index, 0), (index + 1, width)][: 1 + self.goes_on[index]]:
            start, stop = np.searchsorted(frames, (first, first + width))
            cells = np.take(self.images[piece], frames[start:stop] - first, axis=1)
            cells *= self.high[piece] - self.low[piece]
            window[:, start:stop] = cells + self.low[piece]
        window = np.take(window, np.minimum(bins, height - 1), axis=0)
        window = np.maximum(window, window.max() - self.top_db)
        return preprocess.MinMaxNormaliser(0, 1).normalise(window)

    def batches(self, batch_size, rng):
        """Endless (images, images) batches: all pieces once, in a new order, then again."""
        while True:
            order = rng.permutation(len(self.images))
            for start in range(0, len(order), batch_size):
                images = self.draw(order[start : start + batch_size], rng)
                yield images, images


def load_fsdd(spectrograms_path=SPECTOGRAM_PATH, target_shape=TARGET_SHAPE, *, keys=None):
    """Spectrograms below a folder, in the order of preprocess.list_keys.

    Args:
        target_shape: (height, width) to resize to; None keeps the native shape.
        keys: only these, in their order.
    Returns:
        float32 (n, height, width, channels), in [0, 1]; None where keys is empty.
    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged, or of another shape than the others.
    """
    keys = preprocess.list_keys(spectrograms_path) if keys is None else keys
    images = None
    for index, key in enumerate(keys):
        spectrogram = preprocess.load_spectrogram(spectrograms_path, key)
        if target_shape:
            spectrogram = preprocess.resize_spectrogram(spectrogram, target_shape)
        if images is None:
            images = np.empty((len(keys), *spectrogram.shape), np.float32)
        if spectrogram.shape != images.shape[1:]:
            raise ValueError(
                f"{key} must have the first one's shape {images.shape[1:]}, "
                f"got {spectrogram.shape}: run preprocess.py --force"
            )
        images[index] = spectrogram
    return images  # (n, height, width, channels)


def split_by_track(keys, validation_split, seed):
    """A mask of the validation pieces; no track has pieces on both sides.

    Returns:
        bool (len(keys),); all False where the share is 0 or there is one track alone.
    """
    tracks = sorted({preprocess.get_track(key) for key in keys})
    n_held = math.ceil(validation_split * len(tracks)) if len(tracks) > 1 else 0
    shuffled = np.random.default_rng(seed).permutation(tracks)
    held = set(shuffled[: min(n_held, len(tracks) - 1)].tolist())
    return np.array([preprocess.get_track(key) in held for key in keys])


def choose_layers(input_shape, conv_filters=None):
    """The convolutions for spectrograms of a shape.

    The first one spans all bins and one frame, so that its filters are spectra; each one after
    it halves the number of frames.

    Args:
        input_shape: (height, width, channels).
        conv_filters: one entry a layer, or None to choose them.
    Returns:
        (conv_filters, conv_kernels, conv_strides), as the Autoencoder takes them.
    """
    height, width, _ = input_shape
    if not conv_filters:
        n_halvings = max(1, round(math.log2(width / LAST_WIDTH)))
        conv_filters = (CONV_FILTERS[0], *CONV_FILTERS[1:] * n_halvings)
    n_halvings = len(conv_filters) - 1
    kernels = [(height, 1)] + [(1, 3)] * n_halvings
    strides = [(height, 1)] + [(1, 2)] * n_halvings
    return conv_filters, kernels, strides


def train(
    x_train, learning_rate=LEARNING_RATE, batch_size=BATCH_SIZE, epochs=EPOCHS, *,
    windows=None, x_validation=None, conv_filters=None, latent_space_dim=LATENT_SPACE_DIM,
    precision=PRECISION, model_folder=None, callbacks=(), seed=SEED,
):  # fmt: skip
    """Build and fit an autoencoder.

    Args:
        x_train, x_validation: float32 (n, height, width, channels), in [0, 1].
        windows: Windows over x_train to learn from in its place, or None.
        conv_filters: filters of each convolution; None chooses by the shape, see choose_layers.
        precision: "auto" (see choose_precision) or one of autoencoder.PRECISIONS.
        model_folder: where the best weights and the history are kept as it learns, or None.
        callbacks: further Keras callbacks.
    Returns:
        The Autoencoder with its best weights by validation error (by training error without).
    Raises:
        ValueError: the error became NaN or infinite.
    """
    from autoencoder import Autoencoder, choose_precision, keras  # from there, for a quiet start

    keras.utils.set_random_seed(seed)
    input_shape = x_train.shape[1:]
    autoencoder = Autoencoder(
        input_shape, *choose_layers(input_shape, conv_filters), latent_space_dim
    )
    n_steps = epochs * math.ceil(len(x_train) / batch_size)
    n_warm_up = max(1, round(WARM_UP * n_steps))
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, n_steps - n_warm_up), warmup_target=learning_rate, warmup_steps=n_warm_up
    )
    rng = np.random.default_rng(seed)
    start_images = x_train
    if windows:
        start_images = windows.draw_start(rng)
    autoencoder.start_as_pca(start_images, seed)
    autoencoder.set_precision(choose_precision() if precision == "auto" else precision)
    autoencoder.compile(schedule)
    print_start(autoencoder, x_train, x_validation)
    recorder = Recorder(autoencoder, model_folder, epochs)
    autoencoder.train(
        windows.batches(batch_size, rng) if windows else x_train, batch_size, epochs,
        steps_per_epoch=math.ceil(len(x_train) / batch_size), x_validation=x_validation,
        callbacks=[keras.callbacks.LambdaCallback(
            on_epoch_begin=recorder.start_epoch, on_epoch_end=recorder.end_epoch,
        ), *callbacks],
    )  # fmt: skip
    autoencoder.model.set_weights(recorder.best_weights)
    autoencoder.set_precision("float32")
    return autoencoder


def print_start(autoencoder, x_train, x_validation):
    from autoencoder import keras

    n_held = 0 if x_validation is None else len(x_validation)
    print(
        f"{keras.config.backend()} on {', '.join(keras.distribution.list_devices())}, "
        f"{autoencoder.precision}; {autoencoder.model.count_params():,} parameters; "
        f"{len(x_train)} pieces of {' x '.join(map(str, x_train.shape[1:]))} "
        f"({x_train.nbytes / 1e6:.0f} MB) to train on, "
        f"{n_held} to validate on",
        flush=True,
    )


class Recorder:
    """Keeps the history and the best weights of a run, and stops it at a NaN."""

    def __init__(self, autoencoder, model_folder, epochs):
        self.autoencoder = autoencoder
        self.model_folder = None if model_folder is None else Path(model_folder)
        self.epochs = epochs
        self.rows = []
        self.best_error = math.inf
        self.best_weights = None
        self.started = 0.0

    def start_epoch(self, epoch, logs=None):
        self.started = time.perf_counter()

    def end_epoch(self, epoch, logs):
        if not math.isfinite(logs["loss"]):
            raise ValueError(
                f"training error became {logs['loss']} in epoch {epoch + 1}: lower --learning_rate"
            )
        error = logs.get("val_loss", logs["loss"])
        seconds = time.perf_counter() - self.started
        row = {
            "epoch": epoch + 1,
            "loss": logs["loss"],
            "val_loss": logs.get("val_loss", math.nan),
            "learning_rate": float(self.autoencoder.model.optimizer.learning_rate),
            "seconds": seconds,
        }
        self.rows.append(row)
        print(
            f"epoch {epoch + 1}/{self.epochs}: training error {row['loss']:.5f}, "
            f"validation error {row['val_loss']:.5f}, {seconds:.1f} s",
            flush=True,
        )
        if error < self.best_error:
            self.best_error = error
            self.best_weights = self.autoencoder.model.get_weights()
            if self.model_folder:
                self.autoencoder.save(self.model_folder)
        if self.model_folder:
            save_history(self.model_folder, self.rows)


def save_history(folder, rows):
    """Write history.csv, one row an epoch."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    preprocess.write_atomically(folder / "history.csv", text.getvalue().encode())


def plot_history(folder, rows):
    """Write history.png: both errors over the epochs, and the learning rate."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy(epochs, [row["loss"] for row in rows], label="training")
    if not math.isnan(rows[-1]["val_loss"]):
        axes.semilogy(epochs, [row["val_loss"] for row in rows], label="validation (other tracks)")
    axes.set(xlabel="epoch", ylabel="mean squared error")
    axes.grid(alpha=0.3, which="both")
    rate_axes = axes.twinx()
    rates = [row["learning_rate"] for row in rows]
    rate_axes.plot(epochs, rates, color="grey", linestyle=":", label="learning rate")
    rate_axes.set_ylabel("learning rate")
    figure.legend(loc="outside upper center", ncols=3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    preprocess.write_atomically(folder / "history.png", buffer.getvalue())


def save_latents(path, keys, latents, min_max_values):
    """Write latents.npz: latent, min, max, key and genre (top folder) of every piece."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        latent=latents,
        min=np.array([min_max_values[key]["min"] for key in keys]),
        max=np.array([min_max_values[key]["max"] for key in keys]),
        key=np.array(keys),
        genre=np.array([key.split("/")[0] if "/" in key else "" for key in keys]),
    )
    preprocess.write_atomically(path, buffer.getvalue())


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--saved_data", default=preprocess.SAVED_DATA, help="folder that preprocess.py wrote")
    add("--model", default=MODEL, help="folder to write")
    add("--target_shape", type=number(int, 8), nargs=2, metavar=("H", "W"),
        help="bins and frames to resize to, None: the features' own")  # fmt: skip
    add("--latent_space_dim", type=number(int, 1), default=LATENT_SPACE_DIM, help="dimensions")
    add("--conv_filters", type=number(int, 1), nargs="+", metavar="N",
        help="filters, a layer each, None: chosen by the shape")  # fmt: skip
    add("--precision", choices=["auto", "float32", "bfloat16", "float16"], default=PRECISION,
        help="of the arithmetic, auto: bfloat16 where it is faster")  # fmt: skip
    add("--learning_rate", type=number(float, 1e-9), default=LEARNING_RATE, help="the peak")
    add("--batch_size", type=number(int, 1), default=BATCH_SIZE, help="pieces")
    add("--epochs", type=number(int, 1), default=EPOCHS, help="passes over the data")
    add("--validation_split", type=number(float, 0, 0.9), default=VALIDATION_SPLIT,
        help="share of the tracks")  # fmt: skip
    add("--shift_windows", action=argparse.BooleanOptionalAction, default=SHIFT_WINDOWS,
        help="learn from windows at any frame of a track")  # fmt: skip
    add("--seed", type=number(int, 0, 2**32 - 1), default=SEED, help="of the weights and the order")
    return parser


def main():
    options = get_parser().parse_args()
    spectrograms_path = Path(options.saved_data) / Path(SPECTOGRAM_PATH).name
    model_folder = Path(options.model)
    settings = preprocess.load_settings(spectrograms_path / "settings.json")
    keys = preprocess.list_keys(spectrograms_path)
    min_max_values = preprocess.load_min_max_values(preprocess.get_min_max_path(options.saved_data))
    missing = next((key for key in keys if key not in min_max_values), None)
    if missing:
        raise ValueError(f"{missing} has no min-max values: run preprocess.py again")

    held = split_by_track(keys, options.validation_split, options.seed)
    training_keys = [key for key, is_held in zip(keys, held, strict=True) if not is_held]
    held_keys = [key for key, is_held in zip(keys, held, strict=True) if is_held]
    x_train = load_fsdd(spectrograms_path, options.target_shape, keys=training_keys)
    x_validation = load_fsdd(spectrograms_path, options.target_shape, keys=held_keys)
    preprocess.write_json(model_folder / "settings.json", settings._asdict())
    windows = None
    if options.shift_windows:
        windows = Windows(x_train, training_keys, min_max_values, settings.top_db)
    autoencoder = train(
        x_train, options.learning_rate, options.batch_size, options.epochs,
        windows=windows, x_validation=x_validation,
        conv_filters=options.conv_filters, latent_space_dim=options.latent_space_dim,
        precision=options.precision, model_folder=model_folder, seed=options.seed,
    )  # fmt: skip
    autoencoder.save(model_folder)
    with open(model_folder / "history.csv", newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    plot_history(model_folder, rows)
    save_latents(
        model_folder / "latents.npz", training_keys, autoencoder.encode(x_train),
        min_max_values,
    )  # fmt: skip
    print(f"model in {model_folder}")


if __name__ == "__main__":
    preprocess.exit_with_one_line(main)
