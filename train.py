"""Fit the autoencoder to the spectrograms that preprocess.py wrote.

In:  saved_data/spectrograms/**/*.npy.
Out: model/parameters.json, model.weights.h5, settings.json, history.csv, history.png, latents.npz,
     split.json, checkpoint.npz and logs/ for TensorBoard.

    python train.py --saved_data saved_data --model model --epochs 100
"""

import argparse
import collections
import concurrent.futures
import contextlib
import hashlib
import io
import json
import math
import os
import socket
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import preprocess
from support import dataset
from support.arrays import load_arrays
from support.command_line import exit_with_one_line, number
from support.files import (
    make_printable,
    read_json,
    write_atomically,
    write_csv,
    write_figure,
    write_json,
)

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
PARTS = ("train", "valid", "test")  # of a split
MAX_SPLIT_BYTES = 1 << 26  # of its file
WARM_UP = 0.05  # share of the steps
SHIFT_WINDOWS = True
MEMORY_SHARE = 0.5  # of the memory that is free: what pieces may take before they are streamed
CHECK_KEYS = 1000  # that are checked together
SEED = 0

CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into writing checkpoints
N_LOGGED = 10  # times in a run that pictures and sounds of pieces are logged
N_LOGGED_PIECES = 3
LOGS_README = "Look at these logs with: tensorboard --logdir .\n"
CONNECT_S = 60  # seconds that the processes of a run wait for each other
START_WINDOWS_PER_PIECE = 20  # drawn for the components that training starts from, at most
MAX_STRETCH = 0.02  # of a window's time and of its frequencies, as a logarithm: up to 2 %
EDGE_FRAMES = 2  # how far a track without a next piece is shifted, against its floor


class Windows:
    """Draws training windows that start at any frame of a track, not only where pieces start.

    A window runs from a piece on into the next one of its track, in decibels, a little faster or
    slower and higher or lower than recorded (each cell is the nearest one's copy), and gets a
    range and floor of its own, as preprocess.py would have given it. A track's last piece has
    none to run on into: its windows move by EDGE_FRAMES at most, against the floor.

    Args:
        images: float32 (n, height, width, channels), in [0, 1], in the order of the keys; an
            array or Pieces.
        keys: str (n,), as dataset.list_keys gives them.
        min_max_values: {key: {"min": dB, "max": dB}}.
        top_db: dB kept below a window's peak.
    """

    def __init__(self, images, keys, min_max_values, top_db=preprocess.TOP_DB):
        self.images = images
        self.low = np.array([min_max_values[key]["min"] for key in keys], np.float32)
        self.high = np.array([min_max_values[key]["max"] for key in keys], np.float32)
        self.top_db = top_db
        # Pieces of one track are neighbours in the list, in the order of their segments.
        tracks = [dataset.get_track(key) for key in keys]
        self.goes_on = [a == b for a, b in zip(tracks, tracks[1:], strict=False)] + [False]

    def draw(self, indices, rng, max_stretch=MAX_STRETCH):
        """One window near each piece, float32 (len(indices), height, width, channels)."""
        return np.stack([self._draw_one(index, rng, max_stretch) for index in indices])

    def draw_start(self, rng):
        """Unstretched windows for the principal components that training starts from."""
        from autoencoder import START_IMAGES

        count = min(START_IMAGES, START_WINDOWS_PER_PIECE * len(self.images))
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


class Pieces:
    """Spectrograms on disk, read each time they are asked for; used like an array of them.

    Args:
        spectrograms_path: folder that holds them.
        target_shape: (height, width) to resize to; None keeps the native shape.
        keys: which ones, at least one.
    Raises:
        ValueError: a file is damaged, or of another shape than the first; when it is read.
    """

    def __init__(self, spectrograms_path, target_shape, keys):
        self.spectrograms_path = spectrograms_path
        self.target_shape = target_shape
        self.keys = keys
        self.native_shape = dataset.load_spectrogram(spectrograms_path, keys[0]).shape
        height_and_width = target_shape or self.native_shape[:2]
        self.shape = (len(keys), *height_and_width, self.native_shape[2])
        self.nbytes = 4 * math.prod(self.shape)

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        """One piece, float32 (height, width, channels), or those of a slice or of indices."""
        if np.ndim(index) == 0 and not isinstance(index, slice):
            return self._load(self.keys[index])
        return np.stack([self._load(self.keys[i]) for i in np.arange(len(self))[index]])

    def check(self):
        """Read every file once, and raise the ValueError of the first that cannot be used."""
        with concurrent.futures.ThreadPoolExecutor() as executor:
            for start in range(0, len(self.keys), CHECK_KEYS):
                for _ in executor.map(self._load_native, self.keys[start : start + CHECK_KEYS]):
                    pass

    def _load_native(self, key):
        spectrogram = dataset.load_spectrogram(self.spectrograms_path, key)
        if spectrogram.shape != self.native_shape:
            raise ValueError(
                f"{key} must have the first one's shape {self.native_shape}, "
                f"got {spectrogram.shape}: run preprocess.py --force"
            )
        return spectrogram

    def _load(self, key):
        spectrogram = self._load_native(key)
        if self.target_shape:
            spectrogram = preprocess.resize_spectrogram(spectrogram, self.target_shape)
        return spectrogram


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


def needs_streaming(spectrograms_path, target_shape, keys):
    """Whether these pieces would take more than MEMORY_SHARE of the memory that is free."""
    import psutil

    n_bytes = Pieces(spectrograms_path, target_shape, keys).nbytes
    return n_bytes > MEMORY_SHARE * psutil.virtual_memory().available


def split_by_track(keys, validation_split, seed):
    """A mask of the validation pieces; no track has pieces on both sides.

    Returns:
        bool (len(keys),); all False where the share is 0 or there is one track alone.
    """
    tracks = sorted({dataset.get_track(key) for key in keys})
    n_held = math.ceil(validation_split * len(tracks)) if len(tracks) > 1 else 0
    shuffled = np.random.default_rng(seed).permutation(tracks)
    held = set(shuffled[: min(n_held, len(tracks) - 1)].tolist())
    return np.array([dataset.get_track(key) in held for key in keys])


def load_split(path):
    """The tracks of each part of a split, {part: {audio path}}.

    Args:
        path: JSON file of {"train": [...], "valid": [...], "test": [...]}, audio paths below
            their folder, each in one part at most.
    Raises:
        FileNotFoundError, ValueError: there is none, or it is none.
    """
    parts = read_json(path, MAX_SPLIT_BYTES)
    try:
        if not {"train"} <= parts.keys() <= {*PARTS}:
            raise ValueError(f"the parts must be {', '.join(PARTS)}, got {', '.join(parts)}")
        tracks = [track for part in parts.values() for track in part]
        if not all(isinstance(value, list) for value in parts.values()):
            raise ValueError("parts must be lists")
        if not all(isinstance(track, str) for track in tracks):
            raise ValueError("tracks must be paths")
        repeated = [track for track, count in collections.Counter(tracks).items() if count > 1]
        if repeated:
            raise ValueError(f"{repeated[0]} is listed {tracks.count(repeated[0])} times")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} must be a split, {{"train": [...], "valid": [...], "test": [...]}}: {error}'
        ) from error
    return {part: {*parts.get(part, ())} for part in PARTS}


def split_by_list(keys, parts):
    """The keys of each part of a split, {part: [key]}; what is in no part is left out.

    A listed track that is not there stands for one of its name with another ending (.au for
    .wav) that is in no part itself.

    Raises:
        ValueError: there is nothing to train on.
    """
    tracks = {dataset.get_track(key) for key in keys}
    listed_tracks = set().union(*parts.values())
    stems = {
        os.path.splitext(track)[0]: track for track in sorted(tracks - listed_tracks)
        if os.path.splitext(track)[1]
    }  # fmt: skip
    part_of, missing = {}, []
    for part, listed in parts.items():
        for track in sorted(listed):
            stem, ending = os.path.splitext(track)
            found = track if track in tracks else stems.get(stem) if ending else None
            if found is None:
                missing.append(track)
            else:
                part_of[found] = part
    chosen = {part: [] for part in PARTS}
    for key in keys:
        if (part := part_of.get(dataset.get_track(key))) is not None:
            chosen[part].append(key)
    counts = collections.Counter(part_of.values())
    print(
        f"split: {counts['train']} tracks to train on, {counts['valid']} to validate on, "
        f"{counts['test']} kept for tests, {len(tracks) - len(part_of)} in no part; "
        f"{len(missing)} listed ones have no features"
        + (f": {make_printable(', '.join(missing[:5]))}" if missing else "")
        + (" ..." if len(missing) > 5 else ""),
        flush=True,
    )
    if not chosen["train"]:
        raise ValueError("the split has no track to train on in these features: see --split")
    return chosen


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


def load_checkpoint(model_folder, autoencoder):
    """The Checkpoint to go on from, or None where the run had written nothing yet.

    Raises:
        ValueError: there is none, but a model of another architecture.
    """
    checkpoint = Checkpoint.load(model_folder)
    parameters_path = Path(model_folder) / "parameters.json"
    if checkpoint is None and parameters_path.exists():
        parameters = json.loads(json.dumps(autoencoder.parameters))
        if read_json(parameters_path) != parameters:
            raise ValueError(
                f"{model_folder} holds another model and no checkpoint: name another --model, or "
                "leave out --resume to replace it"
            )
    return checkpoint


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


class Distribution(NamedTuple):
    """The devices that train together."""

    scope: object = contextlib.nullcontext()  # to build and fit the model in
    n_devices: int = 1  # that share a batch
    share: tuple = (0, 1)  # (index, count) of this process

    def share_weights(self, autoencoder):
        """The weights that all processes start from: the first one's."""
        weights = autoencoder.model.get_weights()
        if self.share[1] == 1:
            return weights
        from jax.experimental import multihost_utils

        # Two machines round differently, and a component of no variance may be any direction.
        return multihost_utils.broadcast_one_to_all(weights)


def choose_distribution():
    """The Distribution over all devices of this machine, or of all that joined the run."""
    from autoencoder import keras

    if keras.config.backend() == "tensorflow" and len(list_gpus()) > 1:
        import tensorflow as tf

        return Distribution(tf.distribute.MirroredStrategy(list_gpus()).scope(), len(list_gpus()))
    if keras.config.backend() == "jax":
        import jax

        if jax.device_count() > 1:
            parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
            share = (jax.process_index(), jax.process_count())
            return Distribution(parallel.scope(), jax.device_count(), share)
    return Distribution()


def list_gpus():
    from autoencoder import keras

    try:
        return keras.distribution.list_devices("gpu")
    except RuntimeError:  # JAX raises where there is none
        return []


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


class Recorder:
    """Keeps the history, the best weights and the checkpoints of a run, and stops it in time.

    Args:
        autoencoder: the Autoencoder that gets the best weights.
        run: all that the run's weights depend on, for JSON.
        model_folder: where all of it is written, or None.
        settings: the features' settings, to be kept beside the weights, or None.
        logger: a Logger, or None.
    """

    def __init__(self, autoencoder, run, model_folder, settings, logger):
        self.autoencoder = autoencoder
        self.trained = None  # the copy of the autoencoder that learns
        self.run = run
        self.settings = settings
        self.logger = logger
        self.model_folder = None if model_folder is None else Path(model_folder)
        self.rows = []  # of the history, one an epoch
        self.started = 0.0  # the epoch
        self.saved = 0.0  # the last checkpoint
        self.saving_s = 0.0  # how long that took
        self.is_better = False  # than what the model folder holds

    def find_best_epoch(self):
        """The index of the row with the lowest validation error, or training error without."""
        errors = [
            row["loss"] if math.isnan(row["val_loss"]) else row["val_loss"] for row in self.rows
        ]
        return int(np.argmin(errors))

    def is_finished(self):
        n_epochs = len(self.rows)
        if n_epochs == 0:
            return False
        n_without = n_epochs - 1 - self.find_best_epoch()
        return n_epochs >= self.run["epochs"] or n_without >= (self.run["patience"] or math.inf)

    def clear(self):
        """Forget an earlier run's checkpoint, which --resume would take for one of this run."""
        if self.model_folder:
            (self.model_folder / "checkpoint.npz").unlink(missing_ok=True)

    def start_epoch(self, epoch, logs=None):
        self.started = time.perf_counter()

    def end_epoch(self, epoch, logs):
        for name in ("loss", "val_loss"):
            if not math.isfinite(logs.get(name, 0)):
                kind = "training" if name == "loss" else "validation"
                raise ValueError(
                    f"{kind} error became {logs[name]} in epoch {epoch + 1}: lower --learning_rate"
                )
        row = {
            "epoch": epoch + 1,
            "loss": logs["loss"],
            "val_loss": logs.get("val_loss", math.nan),
            "learning_rate": float(self.trained.model.optimizer.learning_rate),
            "seconds": time.perf_counter() - self.started,
        }
        self.rows.append(row)
        print(
            f"epoch {epoch + 1}/{self.run['epochs']}: training error {row['loss']:.5f}, "
            f"validation error {row['val_loss']:.5f}, {row['seconds']:.1f} s",
            flush=True,
        )
        if self.find_best_epoch() == epoch:
            self.autoencoder.model.set_weights(self.trained.model.get_weights())
            self.is_better = True
        if self.logger:  # before the checkpoint: a resumed run logs all epochs after that
            self.logger.log(row, self.autoencoder)
        if self.is_finished():
            self.trained.model.stop_training = True
        if self.model_folder:
            self._save()

    def _save(self):
        columns, values = self.rows[0].keys(), [row.values() for row in self.rows]
        write_csv(self.model_folder / "history.csv", columns, values)
        started = time.perf_counter()
        if started - self.saved < self.saving_s / CHECKPOINT_SHARE:
            return
        if self.is_better:  # first: a checkpoint without its best weights would be worth nothing
            self._save_model()
            self.is_better = False
        Checkpoint.save(self.model_folder, self.run, self.rows, self.trained.model)
        self.saved = time.perf_counter()
        self.saving_s = self.saved - started

    def _save_model(self):
        if self.settings:
            write_json(self.model_folder / "settings.json", self.settings)
        self.autoencoder.save(self.model_folder)

    def finish(self):
        """Write the best weights, a checkpoint that needs no others, and history.png."""
        if self.model_folder:
            self._save_model()
            Checkpoint.save(self.model_folder, self.run, self.rows)
            plot_history(self.model_folder, self.rows)


class Checkpoint:
    """A run after one of its epochs: what it depends on, its history, and how to go on.

    checkpoint.npz holds numbers and a JSON text, no pickled objects; model.weights.h5 beside it
    holds the best weights so far.
    """

    def __init__(self, run, rows, arrays):
        self.run = run
        self.rows = rows
        self.arrays = arrays  # the model's weights, then the optimizer's variables

    @staticmethod
    def save(folder, run, rows, model=None):
        """Write checkpoint.npz; a finished run needs no model in it."""
        from autoencoder import keras

        variables = [*model.weights, *model.optimizer.variables] if model else []
        arrays = [keras.ops.convert_to_numpy(variable) for variable in variables]
        buffer = io.BytesIO()
        np.savez(buffer, *arrays, description=json.dumps({"run": run, "rows": rows}))
        write_atomically(Path(folder) / "checkpoint.npz", buffer.getbuffer())

    @classmethod
    def load(cls, folder):
        """The checkpoint in a model folder, or None where there is none.

        Raises:
            ValueError: it is damaged.
        """
        path = Path(folder) / "checkpoint.npz"
        if not path.exists():
            return None
        try:
            arrays = load_arrays(path)
            description = json.loads(arrays.pop("description").item())
            arrays = [arrays[f"arr_{index}"] for index in range(len(arrays))]
            has_numbers = all(array.dtype.kind in "fiub" for array in arrays)
            if not isinstance(description["run"], dict) or not has_numbers:
                raise ValueError("it is no checkpoint")
            return cls(description["run"], check_rows(description["rows"]), arrays)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged: run train.py without --resume") from error

    def check_run(self, run):
        """Raise a ValueError unless this checkpoint is of the same run."""
        run = json.loads(json.dumps(run))
        for name, value in run.items():
            if value != self.run.get(name):
                raise ValueError(
                    f"the run to resume has {name} {self.run.get(name)}, got {value}: "
                    "give the flags and the features it began with, or leave out --resume"
                )

    def restore(self, model):
        """Put the weights and the optimizer of a compiled model where they were.

        Raises:
            ValueError: they do not fit the model.
        """
        model.optimizer.build(model.trainable_variables)
        variables = [*model.weights, *model.optimizer.variables]
        if [tuple(v.shape) for v in variables] != [array.shape for array in self.arrays]:
            raise ValueError("checkpoint.npz does not fit: run train.py without --resume")
        for variable, array in zip(variables, self.arrays, strict=True):
            variable.assign(array)


def check_rows(rows):
    """The rows of a history, or a ValueError where they are none."""
    if not isinstance(rows, list):
        raise ValueError("its history must be a list")
    for index, row in enumerate(rows):
        if row["epoch"] != index + 1 or not {*map(type, row.values())} <= {int, float}:
            raise ValueError(f"row {index + 1} is none of a history")
        row["loss"], row["val_loss"]  # a KeyError where one is missing
    return rows


class Logger:
    """Writes errors, the learning rate, pictures and sounds for TensorBoard.

    Args:
        folder: where to; logs of an earlier run in it are deleted, unless this one is resumed.
        images: float32 (n, height, width, channels), in [0, 1]: the pieces to see and hear.
        names: one a piece.
        min_max_values: {"min": dB, "max": dB}, one a piece.
        generator: a SoundGenerator for them.
        sample_rate: Hz.
        epochs: of the run.
    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder, images, names, min_max_values, generator, sample_rate, epochs):
        write_atomically(Path(folder) / "README.txt", LOGS_README.encode())
        self.folder = Path(folder)
        self.writer = None
        self.images = images
        self.names = names
        self.min_max_values = min_max_values
        self.generator = generator
        self.sample_rate = sample_rate
        self.shown = {1, *np.linspace(1, epochs, N_LOGGED).round().astype(int).tolist()}

    def _open(self, step):
        from tensorboardX import SummaryWriter

        if step == 1:
            for path in sorted(self.folder.glob("events.out.tfevents.*")):
                path.unlink()
        self.writer = SummaryWriter(str(self.folder), purge_step=step)
        self._log_sounds("original", self.images, step - 1)

    def log(self, row, autoencoder):
        """Log an epoch's row of the history and, now and then, what an autoencoder makes."""
        step = row["epoch"]
        if not self.writer:
            self._open(step)
        self.writer.add_scalar("error/training", row["loss"], step)
        if not math.isnan(row["val_loss"]):
            self.writer.add_scalar("error/validation", row["val_loss"], step)
        self.writer.add_scalar("learning_rate", row["learning_rate"], step)
        if step in self.shown:
            reconstructed, _ = autoencoder.reconstruct(self.images)
            for name, *pair in zip(self.names, self.images, reconstructed, strict=True):
                picture = color_spectrogram(np.concatenate(pair[::-1]))
                self.writer.add_image(f"original_above/{name}", picture, step, dataformats="HWC")
            self._log_sounds("reconstructed", reconstructed, step)
        self.writer.flush()

    def _log_sounds(self, kind, images, step):
        signals = self.generator.convert_spectrograms_to_audio(images, self.min_max_values)
        for name, signal in zip(self.names, signals, strict=True):
            mono = np.atleast_2d(signal).mean(axis=0)
            mono = mono / max(1, np.abs(mono).max())
            self.writer.add_audio(f"{kind}/{name}", mono, step, self.sample_rate)


def color_spectrogram(image):
    """uint8 (height, width, 3) of a normalised spectrogram, low frequencies at the bottom."""
    from matplotlib import colormaps

    return colormaps["magma"](image[::-1, :, 0], bytes=True)[..., :3]


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
    write_figure(folder / "history.png", figure)


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


def prepare_devices(device, coordinator, num_processes, process_id):
    """Leave TensorFlow or JAX the devices asked for, and join the other processes of the run.

    Raises:
        ValueError: a GPU was asked for and none is seen, or the processes do not meet.
    """
    if device == "cpu":  # before TensorFlow or JAX is imported
        os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")
    if coordinator:
        join_processes(coordinator, num_processes, process_id)
    elif (num_processes, process_id) != (1, 0):
        raise ValueError("--num_processes and --process_id need --coordinator HOST:PORT")
    if device == "gpu" and not list_gpus():
        raise ValueError("--device gpu: no GPU is seen; check its driver, or leave the flag out")


def join_processes(coordinator, num_processes, process_id):
    """Let this process train together with the others of its run.

    Raises:
        ValueError: the backend is not JAX, or the others did not come within CONNECT_S.
    """
    if os.environ.get("KERAS_BACKEND") != "jax":
        raise ValueError("--coordinator needs KERAS_BACKEND=jax: set it in the environment")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or process_id >= num_processes:
        raise ValueError(
            "--coordinator must be HOST:PORT and --process_id below --num_processes, "
            f"got {coordinator}, {process_id} and {num_processes}"
        )
    import jax

    if process_id > 0:
        wait_for(host, int(port))
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=CONNECT_S
        )
    except RuntimeError as error:
        raise ValueError(f"{coordinator}: the processes did not meet: {error}") from error


def wait_for(host, port):
    """Return once something answers at an address; ValueError after CONNECT_S."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            socket.create_connection((host, port), timeout=CONNECT_S).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"--coordinator {host}:{port} does not answer ({error}): start process 0 there"
                ) from error
            time.sleep(0.5)


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


def make_logger(folder, images, keys, min_max_values, settings, epochs):
    """A Logger of a few pieces, evenly spaced."""
    from soundgenerator import SoundGenerator

    chosen = np.linspace(0, len(keys) - 1, min(N_LOGGED_PIECES, len(keys))).astype(int)
    loader = preprocess.Loader(settings.sample_rate, settings.duration, settings.mono)
    generator = SoundGenerator(
        None, settings.hop_length, frame_size=settings.frame_size, n_samples=loader.n_samples
    )
    ranges = [min_max_values[keys[index]] for index in chosen]
    names = [make_printable(keys[index]) for index in chosen]
    return Logger(folder, images[chosen], names, ranges, generator, settings.sample_rate, epochs)


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
    exit_with_one_line(main)
