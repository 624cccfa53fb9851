"""Fit the autoencoder to the spectrograms that preprocess.py wrote.

In:  saved_data/spectrograms/**/*.npy.
Out: model/checkpoint.npz and logs/ for TensorBoard, while it trains; at the end, all together,
     parameters.json, model.weights.h5, settings.json, texture.json, history.csv, history.png,
     latents.npz, prior.npz and split.json.

    python train.py --saved_data saved_data --model model --epochs 100
"""

import argparse
import concurrent.futures
import contextlib
import math
from pathlib import Path

import numpy as np

from support import dataset
from support.command_line import make_parser, number, run_script, show_progress
from support.files import lock, replace_together
from support.memory import keep_freed_memory
from support.settings import Settings
from training.checkpoint import CHECKPOINT, PARAMETERS, Checkpoint, load_checkpoint
from training.data import Pieces, Windows
from training.devices import choose_distribution, choose_precision, prepare_devices
from training.outputs import (
    encode_pieces,
    make_fingerprint,
    measure_missing_texture,
    save_history,
    save_prior,
    save_split,
)
from training.splits import split_keys

LEARNING_RATE = None  # the peak of a warm-up and a cosine decay; None: choose_learning_rate
BATCH_SIZE = 16  # pieces
EPOCHS = None  # None: as many as see CELLS of the pieces, MAX_EPOCHS at most
CELLS = 7.5e9  # 57 000 windows of 512 x 256: 20 to 30 minutes on two cores
MAX_EPOCHS = 100
SPECTOGRAM_PATH = "saved_data/spectrograms"
TARGET_SHAPE = None  # (bins, frames) to resize to; None keeps them, 512 x 256 by default
MODEL = "model"

LATENT_SPACE_DIM = None  # None: one number for CELLS_PER_LATENT cells, 2048 for 512 x 256
CELLS_PER_LATENT = 64
CONV_FILTERS = None  # one entry per convolution; None: FIRST_FILTERS, then FILTERS for each other
FIRST_FILTERS, FILTERS = 160, 320
LAST_WIDTH = 16  # frames left, about, in front of the bottleneck
START = "pca"  # or "random"
PRECISION = "auto"  # bfloat16 on a GPU that has it, else float32
DEVICE = "auto"
VALIDATION_SPLIT = 0.1  # share of the tracks
WARM_UP = 0.05  # share of the steps
SHIFT_WINDOWS = True
SEED = 0
IF_INTERRUPTED = "the same command with --resume goes on from the last checkpoint"
IF_OUT_OF_MEMORY = "lower --batch_size, --latent_space_dim or --conv_filters"
RUN_FLAGS = (  # that the weights depend on, besides the data and the architecture
    "start",
    "learning_rate",
    "batch_size",
    "epochs",
    "patience",
    "shift_windows",
    "seed",
)


def load_fsdd(spectrograms_path=SPECTOGRAM_PATH, target_shape=TARGET_SHAPE, *, keys=None):
    """Spectrograms below a folder, in the order of dataset.list_keys.

    Args:
        target_shape: (height, width) to resize to; None keeps their shape.
        keys: only these, in their order.
    Returns:
        float32 (n, height, width, channels), in [0, 1].
    Raises:
        FileNotFoundError: there are none.
        UserError: a file is damaged, or of another shape than the others.
    """
    pieces = Pieces(spectrograms_path, target_shape, keys or dataset.list_keys(spectrograms_path))
    x_train = np.empty(pieces.shape, np.float32)  # (n, height, width, channels)

    def load(index):
        x_train[index] = pieces[index]

    with concurrent.futures.ThreadPoolExecutor() as executor:
        n_pieces = len(pieces)
        for _ in show_progress(executor.map(load, range(n_pieces)), n_pieces, "reading"):
            pass  # but raise what a thread has raised
    return x_train


def choose_architecture(
    input_shape,
    *,
    conv_filters=CONV_FILTERS,
    latent_space_dim=LATENT_SPACE_DIM,
    sample_rate=0,
    precision="float32",
):
    """The Autoencoder's arguments for spectrograms of a shape.

    It is a 1-D convolution over time whose channels are the bins: the filters of the first layer
    are spectra, and each other layer halves the number of frames.

    Args:
        input_shape: (height, width, channels).
        conv_filters: one entry per convolution, or None to choose them.
        latent_space_dim: width of the bottleneck, or None to choose it.
        sample_rate: Hz, to weigh the bins as the mel scale spaces them; 0: all alike.
    """
    if not conv_filters:
        n_halvings = max(1, round(math.log2(input_shape[1] / LAST_WIDTH)))
        conv_filters = (FIRST_FILTERS, *[FILTERS] * n_halvings)
    n_halvings = len(conv_filters) - 1
    return {
        "input_shape": tuple(input_shape),
        "conv_filters": tuple(conv_filters),
        "conv_kernels": (1,) + (3,) * n_halvings,
        "conv_strides": (1,) + (2,) * n_halvings,
        "latent_space_dim": latent_space_dim or max(1, math.prod(input_shape) // CELLS_PER_LATENT),
        "bin_hz": sample_rate / 2 / input_shape[0],
        "bins_as_channels": True,
        "precision": precision,
    }


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
    """Build and fit an autoencoder, on all devices of this run.

    Args:
        x_train, x_validation: float32 (n, height, width, channels), in [0, 1]; arrays or Pieces.
            x_train may be Windows, too.
        learning_rate: float > 0, the peak; None chooses it by the number of weights.
        epochs: passes over x_train; None chooses them by its size.
        architecture: the Autoencoder's arguments by name; None chooses them by the shape.
        start: "pca" (see start_as_pca) or "random" weights, or the Checkpoint of a run to resume.
        callbacks: of Keras; None: those of make_callbacks.
    Returns:
        The Autoencoder with its best weights by validation loss (by training loss without).
    Raises:
        UserError: the loss became NaN or infinite.
    """
    from autoencoder import Autoencoder, keras
    from training.batches import Batches
    from training.callbacks import make_callbacks
    from training.pca_start import freeze_normalisations, start_as_pca

    keep_freed_memory()
    keras.utils.set_random_seed(seed)
    epochs = epochs or choose_epochs(x_train.shape)
    callbacks = callbacks or make_callbacks()
    checkpoint = start if isinstance(start, Checkpoint) else None
    distribution = choose_distribution()
    sharing = {"share": distribution.share, "multiple": distribution.n_devices}
    batches = Batches(x_train, batch_size, seed, **sharing)
    if x_validation is not None:
        x_validation = Batches(x_validation, batch_size, None, **sharing)
    autoencoder = Autoencoder(**(architecture or choose_architecture(x_train.shape[1:])))
    if start == "pca":
        print("start: a principal component analysis of the pieces", flush=True)
        start_as_pca(autoencoder, x_train, seed)
    elif checkpoint and checkpoint.run["start"] == "pca":
        freeze_normalisations(autoencoder)
    learning_rate = learning_rate or choose_learning_rate(autoencoder.model.count_params())
    print_start(autoencoder, x_train, x_validation)
    with distribution.scope:
        if distribution.n_devices > 1:
            autoencoder = distribution.replicate(autoencoder)
        autoencoder.compile(make_schedule(learning_rate, epochs * len(batches)))
        if checkpoint:
            checkpoint.restore(autoencoder.model)
        autoencoder.train(
            batches,
            None,
            epochs,
            x_validation=x_validation,
            initial_epoch=checkpoint.count_epochs() if checkpoint else 0,
            callbacks=[batches.make_callback(), *callbacks],
        )
    return autoencoder


def choose_learning_rate(n_weights):
    """0.001 for networks of up to two million weights, 0.0003 for the 23 million of 512 x 256."""
    return min(1e-3, 1.5 / math.sqrt(n_weights))


def choose_epochs(shape):
    """The epochs that see CELLS of images, (n, height, width, channels): 2 to MAX_EPOCHS."""
    return min(MAX_EPOCHS, max(2, round(CELLS / math.prod(shape))))


def make_schedule(learning_rate, n_steps):
    """A short warm-up, then a cosine decay to zero."""
    from autoencoder import keras

    n_warm_up = max(1, round(WARM_UP * n_steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, n_steps - n_warm_up), warmup_target=learning_rate, warmup_steps=n_warm_up
    )


def print_start(autoencoder, x_train, x_validation):
    """Say what trains on what."""
    from autoencoder import keras

    pieces = x_train.images if isinstance(x_train, Windows) else x_train
    print(
        f"{keras.config.backend()} on {', '.join(keras.distribution.list_devices())}, "
        f"{autoencoder.precision}; {autoencoder.model.count_params():,} parameters; "
        f"{len(pieces)} pieces of {' x '.join(map(str, pieces.shape[1:]))} "
        f"({pieces.nbytes / 1e6:.0f} MB, "
        f"{'streamed' if isinstance(pieces, Pieces) else 'in memory'}) to train on, "
        f"{len(x_validation.images) if x_validation else 0} to validate on",
        flush=True,
    )


def get_parser():
    parser = make_parser(__doc__)
    add, yes_or_no = parser.add_argument, argparse.BooleanOptionalAction
    help_text = "folder that preprocess.py wrote, in place of SPECTOGRAM_PATH's"
    add("--saved_data", type=Path, default=Path(SPECTOGRAM_PATH).parent, help=help_text)
    add("--model", type=Path, default=MODEL, help="folder to write")
    help_text = "bins and frames to resize to; None: as they are"
    size = {"type": number(int, 8), "nargs": 2, "metavar": ("H", "W")}
    add("--target_shape", default=TARGET_SHAPE, help=help_text, **size)
    size = {"type": number(int, 1)}
    help_text = f"width of the bottleneck; None: one number for {CELLS_PER_LATENT} cells"
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
    help_text = f"passes over the data; None: {CELLS:.0e} cells, {MAX_EPOCHS} at most"
    add("--epochs", default=EPOCHS, help=help_text, **size)
    help_text = "share of the tracks to validate on"
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
    help_text = "read pieces when they are needed; None: if they do not fit in memory"
    add("--stream", action=yes_or_no, help=help_text)
    add("--logs", action=yes_or_no, default=True, help="write logs for TensorBoard")
    add("--device", choices=["auto", "cpu", "gpu"], default=DEVICE, help="auto: GPUs if there are")
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
    from training.callbacks import make_callbacks
    from training.tensorboard import TensorBoard

    is_first = options.process_id == 0  # the process that writes
    with lock(options.model, PARAMETERS, CHECKPOINT) if is_first else contextlib.nullcontext():
        checkpoint = load_checkpoint(options.model, resume=options.resume, force=options.force)

        # The data.
        spectrograms_path, keys, settings, min_max_values = load_features(options.saved_data)
        parts = split_keys(
            spectrograms_path, keys, options.split, options.validation_split, options.seed
        )
        images, x_validation = load_images(
            spectrograms_path, options.target_shape, parts, options.stream
        )
        windows = Windows(images, parts["train"], min_max_values, settings.top_db)

        # The run: all that its weights depend on.
        architecture = choose_architecture(
            images.shape[1:],
            conv_filters=options.conv_filters,
            latent_space_dim=options.latent_space_dim,
            sample_rate=settings.sample_rate,
            precision=choose_precision(options.precision, options.coordinator),
        )
        run = {**architecture, **{name: getattr(options, name) for name in RUN_FLAGS}}
        run["epochs"] = epochs = options.epochs or choose_epochs(images.shape)
        run["devices"] = choose_distribution().n_devices
        run["features"] = make_fingerprint(parts, min_max_values)
        checkpoint = checkpoint and checkpoint.continue_as(run)

        # The training.
        part, measured = ("train", images) if x_validation is None else ("valid", x_validation)
        tensorboard = None
        if options.logs and is_first:
            logs = options.model / "logs"
            tensorboard = TensorBoard(logs, measured, parts[part], min_max_values, settings)
        callbacks = make_callbacks(
            patience=options.patience,
            model_folder=options.model if is_first else None,
            run=run,
            checkpoint=checkpoint,
            tensorboard=tensorboard,
        )
        autoencoder = train(
            windows if options.shift_windows else images,
            options.learning_rate,
            options.batch_size,
            epochs,
            x_validation=x_validation,
            architecture=architecture,
            start=checkpoint or options.start,
            callbacks=callbacks,
            seed=options.seed,
        )

        # The model, by all processes, for they compute together.
        print(f"latents of {len(images)} pieces", flush=True)
        pieces, followers = encode_pieces(
            autoencoder.encode, windows, parts["train"], min_max_values, settings.sample_rate
        )
        ranges = dataset.select_min_max_values(min_max_values, parts[part])
        texture = measure_missing_texture(
            lambda images: autoencoder.reconstruct(images)[0], measured, ranges, settings
        )
        if is_first:
            with replace_together(options.model, PARAMETERS) as folder:
                autoencoder.save(folder)
                settings.save(folder / "settings.json")
                save_history(folder, callbacks)
                texture.save(folder)
                pieces.save(folder)
                save_prior(folder, pieces, followers)
                save_split(folder / "split.json", parts)
            print(f"model in {options.model}")
        choose_distribution().wait_for_all()


def load_features(saved_data):
    """(folder of the spectrograms, their keys, their Settings, their min-max values)."""
    spectrograms_path = saved_data / Path(SPECTOGRAM_PATH).name
    settings = Settings.load(spectrograms_path / "settings.json")
    keys = dataset.list_keys(spectrograms_path)
    min_max_values = dataset.load_min_max_values(dataset.get_min_max_path(saved_data), keys)
    return spectrograms_path, keys, settings, min_max_values


def load_images(spectrograms_path, target_shape, parts, stream):
    """(training, validation) images: arrays, or Pieces if streamed; None without any."""
    print(f"reading {len(parts['train']) + len(parts['valid'])} pieces", flush=True)
    if stream is None:
        pieces = Pieces(spectrograms_path, target_shape, parts["train"] + parts["valid"])
        stream = pieces.needs_streaming()
    images = []
    for keys in (parts["train"], parts["valid"]):
        if not keys:
            images.append(None)
        elif stream:
            images.append(Pieces(spectrograms_path, target_shape, keys))
            images[-1].check()
        else:
            images.append(load_fsdd(spectrograms_path, target_shape, keys=keys))
    return images


if __name__ == "__main__":
    run_script(main, IF_INTERRUPTED, IF_OUT_OF_MEMORY)
