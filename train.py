"""Fit the autoencoder to the spectrograms that preprocess.py wrote.

In:  saved_data/ as preprocess.py wrote it.
Out: model/checkpoint.npz, then those of the flows, and logs/, while it trains; at the end, all
     together, parameters.json, model.weights.h5, settings.json, history.csv, history.png,
     tracks.npz, detail.npz, prior.npz and split.json.

    python train.py --saved_data saved_data --model model --epochs 100
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import math
import os
import tempfile
from pathlib import Path

import numpy as np

from support import dataset
from support.command_line import folder_path, make_parser, number, run_script, show_progress
from support.files import lock, replace_together
from training.checkpoint import (
    CHECKPOINT,
    DETAIL_CHECKPOINT,
    OLD_CHECKPOINT,
    PARAMETERS,
    PRIOR_CHECKPOINT,
    Checkpoint,
    load_checkpoint,
)
from training.devices import choose_distribution, choose_precision, prepare_devices
from training.splits import split_keys

LEARNING_RATE = None  # the peak of a warm-up and a cosine decay; None: choose_learning_rate
BATCH_SIZE = 16  # pieces
EPOCHS = None  # None: as many as see CELLS of the pieces, MAX_EPOCHS at most
CELLS = 2.4e10  # 180 000 windows of 512 x 256: 20 to 25 minutes on two cores
MAX_EPOCHS = 100
SPECTOGRAM_PATH = "saved_data/spectrograms"
TARGET_SHAPE = None  # (bins, frames) to resize to; None keeps them, 512 x 256 by default
MODEL = "model"

LATENT_SPACE_DIM = None  # numbers for each step; None: 128 for 16 frames of 512 bins
CONV_FILTERS = None  # one entry per convolution; None: chosen by the shape
START = "pca"  # or "random"
PRECISION = "auto"  # bfloat16 on a GPU that has it, else float32
DEVICE = "auto"
FLOW_EPOCHS = 20  # of each flow: the full plan
N_VARIATIONS = 3  # of each track: a little faster or slower, higher or lower
VALIDATION_SPLIT = 0.1  # share of the pieces
SHIFT_WINDOWS = True
SEED = 0
MEMORY_SHARE = 0.5  # of what is free; more than that is mapped from a temporary file
IF_INTERRUPTED = "the same command with --resume goes on from the last checkpoint"
IF_OUT_OF_MEMORY = "lower --batch_size, --latent_space_dim or --conv_filters"
# What the weights depend on, besides the data and the architecture.
RUN_FLAGS = "start", "learning_rate", "batch_size", "epochs", "patience", "shift_windows", "seed"


def load_fsdd(spectrograms_path=SPECTOGRAM_PATH, target_shape=TARGET_SHAPE, *, keys=None):
    """Spectrograms below a folder, in the order of dataset.list_keys.

    Args:
        target_shape: (height, width) to resize to; None keeps their shape.
        keys: only these, in their order.
    Returns:
        float16 (n, height, width, channels), in [0, 1]: a frame's bins lie together. What is large
        for the memory is in a temporary file.
    Raises:
        FileNotFoundError: there are none.
        UserError: a file is damaged, or of another shape than the others.
    """
    keys = keys or dataset.list_keys(spectrograms_path)
    pieces = dataset.Pieces(spectrograms_path, target_shape, keys)
    n, height, width, channels = pieces.shape
    frames = make_room((n, width, height, channels))

    def load(index):
        frames[index] = pieces[index].transpose(1, 0, 2)

    with concurrent.futures.ThreadPoolExecutor() as executor:
        for _ in show_progress(executor.map(load, range(n)), n, "reading"):
            pass  # iterate only to raise a thread's exception
    return frames.transpose(0, 2, 1, 3)


def make_room(shape):
    """An array of float16, in memory or, if it is large for that, in a temporary file."""
    import psutil

    if 2 * math.prod(shape) <= MEMORY_SHARE * psutil.virtual_memory().available:
        return np.empty(shape, np.float16)
    with tempfile.TemporaryFile() as file:  # which is gone with the array
        if hasattr(os, "posix_fallocate"):  # else a full disk would end the process
            os.posix_fallocate(file.fileno(), 0, 2 * math.prod(shape))
        return np.memmap(file, np.float16, "w+", shape=shape)


def train(
    x_train,
    learning_rate=LEARNING_RATE,
    batch_size=BATCH_SIZE,
    epochs=EPOCHS,
    *,
    x_validation=None,
    architecture=None,
    start=START,
    callbacks=None,
    seed=SEED,
):
    """An Autoencoder, fitted on all devices of this run, with its best weights by validation loss
    (by training loss without).

    Args:
        x_train, x_validation: float (n, height, width, channels), in [0, 1], or Windows.
        learning_rate: float > 0, the peak; None chooses it by the number of weights.
        batch_size: of arrays; Windows have one.
        epochs: passes over x_train; None chooses them by its size.
        architecture: the Autoencoder's arguments by name; None chooses them by the shape.
        start: "pca" (see start_as_pca) or "random" weights, or the Checkpoint of a run to resume.
        callbacks: of Keras, made with the Checkpoint of a resumed run; None: make_callbacks'.
    Raises:
        UserError: the loss became NaN or infinite.
    """
    from autoencoder import Autoencoder, choose_architecture, keras
    from support.keras import make_schedule
    from training.callbacks import make_callbacks
    from training.windows import Windows

    keras.utils.set_random_seed(seed)
    epochs = epochs or choose_epochs(x_train.shape)
    checkpoint = start if isinstance(start, Checkpoint) else None
    callbacks = callbacks or make_callbacks(checkpoint=checkpoint)
    distribution = choose_distribution()
    how = {"batch_size": batch_size, "distribution": distribution}
    if isinstance(x_train, np.ndarray):
        x_train = Windows(x_train, seed=seed, shift=False, **how)
    if isinstance(x_validation, np.ndarray):
        x_validation = Windows(x_validation, **how)
    autoencoder = Autoencoder(**(architecture or choose_architecture(x_train.shape[1:])))
    set_start(autoencoder, x_train, start, seed)
    starting = keras.callbacks.LambdaCallback(on_epoch_begin=x_train.start_epoch)
    learning_rate = learning_rate or choose_learning_rate(autoencoder.model.count_params())
    print_start(autoencoder, x_train, x_validation)
    with distribution.scope:
        autoencoder = distribution.replicate(autoencoder)
        autoencoder.compile(make_schedule(learning_rate, epochs * len(x_train)))
        if checkpoint:
            checkpoint.restore(autoencoder.model)
        autoencoder.train(
            x_train,
            None,
            epochs,
            x_validation=x_validation,
            initial_epoch=checkpoint.count_finished_epochs() if checkpoint else 0,
            callbacks=[starting, *callbacks],
        )
    return autoencoder


def set_start(autoencoder, x_train, start, seed):
    """Make an Autoencoder what a run begins with; see train()."""
    from training.pca_start import freeze_normalisations, start_as_pca

    if start == "pca":
        print("start: a principal component analysis of the pieces", flush=True)
        start_as_pca(autoencoder, x_train, seed)
    elif isinstance(start, Checkpoint) and start.run["start"] == "pca":
        freeze_normalisations(autoencoder)


def choose_learning_rate(n_weights):
    """0.001 for networks of up to half a million weights, half of it for 2.4 million."""
    return min(1e-3, 0.75 / math.sqrt(n_weights))


def choose_epochs(shape):
    """The epochs that see CELLS of images, (n, height, width, channels): 2 to MAX_EPOCHS."""
    return min(MAX_EPOCHS, max(2, round(CELLS / math.prod(shape))))


def print_start(autoencoder, x_train, x_validation):
    """Say what trains on what."""
    from autoencoder import keras

    n_pieces, *shape = x_train.shape
    print(
        f"{keras.config.backend()} on {', '.join(keras.distribution.list_devices())}, "
        f"{autoencoder.precision}; {autoencoder.model.count_params():,} parameters; "
        f"{n_pieces} pieces of {' x '.join(map(str, shape))} "
        f"({x_train.frames.nbytes / 1e6:.0f} MB) to train on, "
        f"{x_validation.shape[0] if x_validation else 0} to validate on",
        flush=True,
    )


def get_parser():
    parser = make_parser(__doc__)
    add, yes_or_no = parser.add_argument, argparse.BooleanOptionalAction
    help_text = "folder that preprocess.py wrote"
    add("--saved_data", type=folder_path, default=Path(SPECTOGRAM_PATH).parent, help=help_text)
    add("--model", type=folder_path, default=MODEL, help="folder to write")
    help_text = "bins and frames to resize to; None: as they are"
    size = {"type": number(int, 8), "nargs": 2, "metavar": ("H", "W")}
    add("--target_shape", default=TARGET_SHAPE, help=help_text, **size)
    size = {"type": number(int, 1)}
    help_text = "width of the bottleneck: numbers for each step; None: one for 64 cells"
    add("--latent_space_dim", default=LATENT_SPACE_DIM, help=help_text, **size)
    help_text = "filters of each convolution; None: chosen by the shape"
    add("--conv_filters", nargs="+", metavar="N", default=CONV_FILTERS, help=help_text, **size)
    help_text = "start as a principal component analysis, or from random weights"
    add("--start", choices=["pca", "random"], default=START, help=help_text)
    help_text = "arithmetic of training; auto: bfloat16 on a GPU that has it, else float32"
    precisions = ["auto", "float32", "bfloat16", "float16"]
    add("--precision", choices=precisions, default=PRECISION, help=help_text)
    help_text = "peak, between a warm-up and a cosine decay; None: lower for larger networks"
    add("--learning_rate", type=number(float, 1e-9), default=LEARNING_RATE, help=help_text)
    add("--batch_size", default=BATCH_SIZE, help="pieces", **size)
    help_text = f"passes over the data; None: {CELLS:.1e} cells, {MAX_EPOCHS} at most"
    add("--epochs", default=EPOCHS, help=help_text, **size)
    help_text = "of the two flows, which draw detail and new music; 0: neither, in half the time"
    add("--flow_epochs", type=number(int, 0), default=FLOW_EPOCHS, help=help_text)
    help_text = "share of the pieces to validate on"
    split = parser.add_mutually_exclusive_group()
    flag = {"type": number(float, 0, 0.9), "default": VALIDATION_SPLIT, "help": help_text}
    split.add_argument("--validation_split", **flag)
    help_text = "JSON lists of the tracks to train and to validate on; None: at random"
    split.add_argument("--split", metavar="FILE", help=help_text)
    help_text = "learn from windows at any frame of a track"
    add("--shift_windows", action=yes_or_no, default=SHIFT_WINDOWS, help=help_text)
    help_text = "stop after this many epochs without a lower loss; None: never"
    add("--patience", metavar="N", help=help_text, **size)
    either = parser.add_mutually_exclusive_group()
    help_text = "go on with the run in --model, or make it longer with more --epochs"
    either.add_argument("--resume", action="store_true", help=help_text)
    help_text = "replace the model in --model, once the new one is ready"
    either.add_argument("--force", action="store_true", help=help_text)
    add("--logs", action=yes_or_no, default=True, help="write logs for TensorBoard")
    help_text = "auto: GPUs, if there are any"
    add("--device", choices=["auto", "cpu", "gpu"], default=DEVICE, help=help_text)
    help_text = "address of the first of several processes that train together"
    add("--coordinator", metavar="HOST:PORT", help=help_text)
    add("--num_processes", default=1, help="how many processes train together", **size)
    help_text = "index of this process; the first is 0"
    add("--process_id", type=number(int, 0), default=0, help=help_text)
    help_text = "of the weights, the order and the split"
    add("--seed", type=number(int, 0, 2**32 - 1), default=SEED, help=help_text)
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    prepare_devices(options.device, options.coordinator, options.num_processes, options.process_id)
    is_first = options.process_id == 0  # the process that writes
    with lock(options.model, PARAMETERS, CHECKPOINT) if is_first else contextlib.nullcontext():
        checkpoint = load_checkpoint(options.model, resume=options.resume, force=options.force)
        fit_and_save(options, checkpoint, is_first)


def fit_and_save(options, checkpoint, is_first):
    """Train as the options say, and write the model."""
    from training.callbacks import make_callbacks
    from training.outputs import make_fingerprint
    from training.tensorboard import TensorBoard

    # The data.
    features = dataset.Features(options.saved_data / Path(SPECTOGRAM_PATH).name)
    settings = features.settings
    parts = split_keys(features, options.split, options.validation_split, options.seed)
    print_parts(parts, settings.duration)
    sizes = options.target_shape, options.batch_size
    drawing = {"seed": options.seed, "shift": options.shift_windows}
    windows = make_windows(features, parts["train"], *sizes, **drawing)
    validation = make_windows(features, parts["valid"], *sizes) if parts["valid"] else None

    fingerprint = make_fingerprint(parts, features.min_max_values)
    planned = checkpoint and checkpoint.run["epochs"]
    n_epochs = options.epochs or planned or choose_epochs(windows.shape)
    architecture, run = make_run(options, n_epochs, windows.shape, settings, fingerprint)
    checkpoint = checkpoint and checkpoint.continue_as(run)
    if checkpoint:
        n_done = min(len(checkpoint.rows) - 1, n_epochs)
        print(f"going on after epoch {n_done} of {n_epochs}", flush=True)

    # The training.
    measured, names = (validation or windows), (parts["valid"] or parts["train"])
    writing = {}
    if is_first:
        writing = {"path": options.model / CHECKPOINT, "run": run}
        if options.logs:
            logs = options.model / "logs"
            writing["tensorboard"] = TensorBoard(logs, measured, names, settings)
    callbacks = make_callbacks(patience=options.patience, checkpoint=checkpoint, **writing)
    autoencoder = train(
        windows,
        options.learning_rate,
        options.batch_size,
        n_epochs,
        x_validation=validation,
        architecture=architecture,
        start=checkpoint or options.start,
        callbacks=callbacks,
        seed=options.seed,
    )

    if is_first:
        autoencoder = choose_distribution().localise(autoencoder)
        finish(options, autoencoder, windows, validation, parts, settings, callbacks)
        print(f"model in {options.model}")
    choose_distribution().wait_for_all()


def finish(options, autoencoder, windows, validation, parts, settings, callbacks):
    """Fit what makes detail and new music, and write the whole model."""
    from support.detail import DETAIL
    from support.prior import PRIOR
    from training.flows import train_detail, train_prior
    from training.outputs import describe_tracks, encode_tracks, save_all

    how = {"epochs": options.flow_epochs, "seed": options.seed}
    path = options.model / DETAIL_CHECKPOINT
    detail = train_detail(autoencoder, windows, validation, path=path, **how)
    tracks, latents = describe_tracks(autoencoder, windows, parts["train"], settings.sample_rate)
    varied, held_out = [], []
    if options.flow_epochs:
        varied = encode_tracks(autoencoder, windows, N_VARIATIONS, options.seed)
        held_out = encode_tracks(autoencoder, validation) if validation else []
    path = options.model / PRIOR_CHECKPOINT
    prior = train_prior(tracks, latents, varied, held_out, path=path, **how)
    (options.model / OLD_CHECKPOINT).unlink(missing_ok=True)
    with replace_together(options.model, PARAMETERS) as folder:
        save_all(folder, autoencoder, settings, callbacks, tracks, (detail, prior), parts)
    for learned, name in ((detail, DETAIL), (prior, PRIOR)):
        if not learned:
            (options.model / name).unlink(missing_ok=True)  # of the model before


def print_parts(parts, duration):
    """Say how much is trained and validated on; a piece has a duration in seconds."""
    amounts = [
        f"{len({*map(dataset.get_track, parts[part])})} tracks ({len(parts[part])} pieces, "
        f"{len(parts[part]) * duration / 3600:.2f} h) to {use} on"
        for part, use in (("train", "train"), ("valid", "validate"))
    ]
    print(f"reading {', '.join(amounts)}", flush=True)


def make_run(options, n_epochs, shape, settings, fingerprint):
    """(the Autoencoder's arguments, all that a run's weights depend on) for images of a shape.

    Args:
        fingerprint: of the pieces.
    """
    import autoencoder

    architecture = autoencoder.choose_architecture(
        shape[1:],
        conv_filters=options.conv_filters,
        latent_space_dim=options.latent_space_dim,
        sample_rate=settings.sample_rate,
        precision=choose_precision(options.precision, options.coordinator),
    )
    run = {**architecture, **{name: getattr(options, name) for name in RUN_FLAGS}}
    run["epochs"] = n_epochs
    run["devices"] = choose_distribution().n_devices
    run["features"] = fingerprint
    run["code"] = hashlib.sha256(Path(autoencoder.__file__).read_bytes()).hexdigest()[:16]
    return architecture, run


def make_windows(features, keys, target_shape, batch_size, **how):
    """The Windows of some keys of Features."""
    from training.windows import Windows

    return Windows(
        load_fsdd(features.path, target_shape, keys=keys),
        features.list_ranges(keys),
        [*map(dataset.get_track, keys)],
        top_db=features.settings.top_db,
        batch_size=batch_size,
        distribution=choose_distribution(),
        **how,
    )


if __name__ == "__main__":
    run_script(main, IF_INTERRUPTED, IF_OUT_OF_MEMORY)
