"""Fit the autoencoder to the spectrograms that preprocess.py wrote.

In:  saved_data/spectrograms/**/*.npy.
Out: model/parameters.json, model.weights.h5, settings.json, history.csv, history.png, latents.npz,
     split.json, checkpoint.npz and logs/ for TensorBoard.

    python train.py --saved_data saved_data --model model --epochs 100
"""

import argparse
import hashlib
import io
import json
import math
from pathlib import Path

import numpy as np

import preprocess
from support import dataset
from support.command_line import exit_with_one_line, number
from support.files import write_atomically, write_json
from training.devices import choose_distribution, prepare_devices
from training.logger import make_logger
from training.pieces import Pieces, Windows, needs_streaming
from training.recorder import Recorder, load_checkpoint
from training.splits import PARTS, load_split, split_by_list, split_by_track

LEARNING_RATE = 2e-3  # the peak, after a warm-up and before a cosine decay to zero
BATCH_SIZE = 16
EPOCHS = 100
SPECTOGRAM_PATH = "saved_data/spectrograms"
TARGET_SHAPE = (512, 256)  # bins, frames: what preprocess.py writes by default, not resized then
MODEL = "model"

CONV_FILTERS = (160, 320)  # of the layer that spans all bins, and of each one after it
LAST_WIDTH = 16  # frames left, about, in front of the bottleneck
PRECISION = "auto"
DEVICE = "auto"
LATENT_SPACE_DIM = 512  # benchmarks/reconstruction.py: 1024 sounds hardly better
VALIDATION_SPLIT = 0.1  # share of the tracks
WARM_UP = 0.05  # share of the steps
SHIFT_WINDOWS = True
SEED = 0


def load_fsdd(spectrograms_path=SPECTOGRAM_PATH, target_shape=TARGET_SHAPE, *, keys=None):
    """Spectrograms below a folder, in the order of dataset.list_keys.

    Args:
        target_shape: (height, width) to resize to; None keeps the native shape.
        keys: only these, in their order.
    Returns:
        float32 (n, height, width, channels), in [0, 1]; None where keys is empty.
    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged, or of another shape than the others.
    """
    keys = dataset.list_keys(spectrograms_path) if keys is None else keys
    if not keys:
        return None
    pieces = Pieces(spectrograms_path, target_shape, keys)
    images = np.empty(pieces.shape, np.float32)
    for index in range(len(keys)):
        images[index] = pieces[index]
    return images  # (n, height, width, channels)


def open_pieces(spectrograms_path, target_shape, keys, stream):
    """The spectrograms in memory as load_fsdd gives them or, to be streamed, as checked Pieces."""
    if not stream or not keys:
        return load_fsdd(spectrograms_path, target_shape, keys=keys)
    pieces = Pieces(spectrograms_path, target_shape, keys)
    pieces.check()
    return pieces


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
    precision=PRECISION, patience=None, model_folder=None, resume=False, writes=True,
    settings=None, identity="", logger=None, callbacks=(), seed=SEED,
):  # fmt: skip
    """Build and fit an autoencoder, on all the devices that are seen.

    Args:
        x_train, x_validation: float32 (n, height, width, channels), in [0, 1]; arrays or Pieces.
        windows: Windows over x_train to learn from in its place, or None.
        conv_filters: filters of each convolution; None chooses by the shape, see choose_layers.
        precision: "auto" (see choose_precision) or one of autoencoder.PRECISIONS.
        patience: epochs without a lower error after which to stop, or None.
        model_folder: where the best weights, the history and checkpoints are kept, or None.
        resume: go on from the checkpoint in model_folder, if there is one.
        writes: False where another process of the run writes model_folder.
        settings: the features' settings, a dict to keep beside the weights, or None.
        identity: names the data; a run is not resumed with other data.
        logger: a Logger, or None.
        callbacks: further Keras callbacks.
    Returns:
        The Autoencoder with its best weights by validation error (by training error without).
    Raises:
        ValueError: the error became NaN or infinite, or the checkpoint is of another run.
    """
    from autoencoder import Autoencoder, choose_precision, keras  # from there, for a quiet start

    keras.utils.set_random_seed(seed)
    input_shape = x_train.shape[1:]
    autoencoder = Autoencoder(
        input_shape, *choose_layers(input_shape, conv_filters), latent_space_dim
    )
    distribution = choose_distribution()
    checkpoint = load_checkpoint(model_folder, autoencoder) if resume else None
    if precision == "auto":
        precision = checkpoint.run["precision"] if checkpoint else choose_precision()
    run = {
        **autoencoder.parameters, "learning_rate": learning_rate, "batch_size": batch_size,
        "epochs": epochs, "patience": patience, "precision": precision,
        "shift_windows": windows is not None, "seed": seed, "devices": distribution.n_devices,
        "pieces": [len(x_train), 0 if x_validation is None else len(x_validation)],
        "features": identity,
    }  # fmt: skip
    recorder = Recorder(autoencoder, run, model_folder if writes else None, settings, logger)
    if checkpoint:
        checkpoint.check_run(run)
        autoencoder.load_weights(Path(model_folder) / "model.weights.h5")
        recorder.rows = checkpoint.rows
    else:
        rng = np.random.default_rng(seed)
        autoencoder.start_as_pca(windows.draw_start(rng) if windows else x_train, seed)
        recorder.clear()
    print_start(autoencoder, precision, x_train, x_validation)
    if not recorder.is_finished():
        fit(recorder, distribution, checkpoint, x_train, x_validation, windows, callbacks)
    recorder.finish()
    return autoencoder


def fit(recorder, distribution, checkpoint, x_train, x_validation, windows, callbacks):
    """Train a copy of the recorder's autoencoder on all devices, up to the run's last epoch."""
    from autoencoder import Autoencoder, Batches, keras

    run, n_done = recorder.run, len(recorder.rows)
    common = {
        "batch_size": run["batch_size"], "share": distribution.share,
        "multiple": distribution.n_devices,
    }  # fmt: skip
    draw = windows.draw if windows else lambda indices, rng: x_train[indices]
    batches = Batches(draw, len(x_train), seed=run["seed"], **common)
    held_batches = None
    if x_validation is not None:
        held_batches = Batches(
            lambda indices, rng: x_validation[indices], len(x_validation), seed=None, **common
        )
    with distribution.scope:
        trained = recorder.trained = Autoencoder(**recorder.autoencoder.parameters)
        trained.model.set_weights(distribution.share_weights(recorder.autoencoder))
        trained.hold_normalisations()
        trained.set_precision(run["precision"])
        trained.compile(make_schedule(run["learning_rate"], run["epochs"] * len(batches)))
        if checkpoint:
            checkpoint.restore(trained.model)
        trained.train(
            batches, None, run["epochs"], x_validation=held_batches, initial_epoch=n_done,
            callbacks=[keras.callbacks.LambdaCallback(
                on_epoch_begin=recorder.start_epoch, on_epoch_end=recorder.end_epoch,
            ), *callbacks],
        )  # fmt: skip


def make_schedule(learning_rate, n_steps):
    """A short warm-up, then a cosine decay to zero."""
    from autoencoder import keras

    n_warm_up = max(1, round(WARM_UP * n_steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, n_steps - n_warm_up), warmup_target=learning_rate, warmup_steps=n_warm_up
    )


def print_start(autoencoder, precision, x_train, x_validation):
    from autoencoder import keras

    n_held = 0 if x_validation is None else len(x_validation)
    print(
        f"{keras.config.backend()} on {', '.join(keras.distribution.list_devices())}, "
        f"{precision}; {autoencoder.model.count_params():,} parameters; "
        f"{len(x_train)} pieces of {' x '.join(map(str, x_train.shape[1:]))} "
        f"({x_train.nbytes / 1e6:.0f} MB, "
        f"{'streamed' if isinstance(x_train, Pieces) else 'in memory'}) to train on, "
        f"{n_held} to validate on",
        flush=True,
    )


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
    write_atomically(path, buffer.getvalue())


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
    add("--split", metavar="FILE",
        help="JSON lists of the tracks to train and to validate on, None: at random")  # fmt: skip
    add("--shift_windows", action=argparse.BooleanOptionalAction, default=SHIFT_WINDOWS,
        help="learn from windows at any frame of a track")  # fmt: skip
    add("--patience", type=number(int, 1), metavar="N",
        help="stop after this many epochs without a lower error, None: never")  # fmt: skip
    add("--resume", action=argparse.BooleanOptionalAction, default=False,
        help="go on with the run in --model that was interrupted")  # fmt: skip
    add("--stream", action=argparse.BooleanOptionalAction,
        help="read pieces as they are needed, None: if they do not fit in memory")  # fmt: skip
    add("--logs", action=argparse.BooleanOptionalAction, default=True,
        help="write the logs for TensorBoard")  # fmt: skip
    add("--device", choices=["auto", "cpu", "gpu"], default=DEVICE, help="auto: GPUs if seen")
    add("--coordinator", metavar="HOST:PORT",
        help="address of the first of several processes that train together")  # fmt: skip
    add("--num_processes", type=number(int, 1), default=1, help="of them")
    add("--process_id", type=number(int, 0), default=0, help="0 for the first of them")
    add("--seed", type=number(int, 0, 2**32 - 1), default=SEED, help="of the weights and the order")
    return parser


def load_features(options):
    """All that the flags name in saved_data, read and checked.

    Returns:
        (settings, min-max values, {part: keys}, x_train, x_validation).
    """
    spectrograms_path = Path(options.saved_data) / Path(SPECTOGRAM_PATH).name
    settings = dataset.load_settings(spectrograms_path / "settings.json")
    keys = dataset.list_keys(spectrograms_path)
    min_max_values = dataset.load_min_max_values(dataset.get_min_max_path(options.saved_data))
    missing = next((key for key in keys if key not in min_max_values), None)
    if missing:
        raise ValueError(f"{missing} has no min-max values: run preprocess.py again")
    if options.split:
        chosen = split_by_list(keys, load_split(options.split))
    else:
        held = split_by_track(keys, options.validation_split, options.seed)
        chosen = {part: [] for part in PARTS}
        for key, is_held in zip(keys, held, strict=True):
            chosen["valid" if is_held else "train"].append(key)
    stream = options.stream
    if stream is None:
        used = chosen["train"] + chosen["valid"]
        stream = needs_streaming(spectrograms_path, options.target_shape, used)
    x_train, x_validation = (
        open_pieces(spectrograms_path, options.target_shape, chosen[part], stream)
        for part in ("train", "valid")
    )
    return settings, min_max_values, chosen, x_train, x_validation


def main():
    options = get_parser().parse_args()
    prepare_devices(options.device, options.coordinator, options.num_processes, options.process_id)
    settings, min_max_values, keys, x_train, x_validation = load_features(options)
    training_keys, held_keys = keys["train"], keys["valid"]
    model_folder, is_first, logger = Path(options.model), options.process_id == 0, None
    if options.logs and is_first:
        shown = (x_train, training_keys) if x_validation is None else (x_validation, held_keys)
        logger = make_logger(
            model_folder / "logs", *shown, min_max_values, settings, options.epochs
        )
    precision = options.precision
    if options.coordinator and precision == "auto":
        precision = "float32"  # two machines might choose differently
    windows = None
    if options.shift_windows:
        windows = Windows(x_train, training_keys, min_max_values, settings.top_db)
    autoencoder = train(
        x_train, options.learning_rate, options.batch_size, options.epochs,
        windows=windows, x_validation=x_validation,
        conv_filters=options.conv_filters, latent_space_dim=options.latent_space_dim,
        precision=precision, patience=options.patience, model_folder=model_folder,
        resume=options.resume, writes=is_first, settings=settings._asdict(),
        identity=make_identity(training_keys, held_keys, min_max_values), logger=logger,
        seed=options.seed,
    )  # fmt: skip
    if is_first:
        save_latents(
            model_folder / "latents.npz", training_keys, autoencoder.encode(x_train),
            min_max_values,
        )  # fmt: skip
        tracks = {part: sorted({dataset.get_track(key) for key in keys[part]}) for part in PARTS}
        write_json(model_folder / "split.json", tracks)
        print(f"model in {model_folder}")
    if options.coordinator:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("done")  # the others wait for the first to end


def make_identity(training_keys, held_keys, min_max_values):
    """A checksum of which pieces are trained on and held out, and of their decibel ranges."""
    ranges = [[key, sorted(min_max_values[key].items())] for key in training_keys + held_keys]
    text = json.dumps([len(training_keys), ranges])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


if __name__ == "__main__":
    exit_with_one_line(main, "the same command with --resume goes on from the last checkpoint")
