"""What a run leaves behind, and how an interrupted one goes on.

In:  the errors of each epoch, and the autoencoder that learns.
Out: model/model.weights.h5, parameters.json, settings.json, checkpoint.npz, history.csv and .png.

    checkpoint = Checkpoint.load("model")
"""

import io
import json
import math
import time
from pathlib import Path

import numpy as np

from support.arrays import load_arrays
from support.files import read_json, write_atomically, write_csv, write_figure, write_json

CHECKPOINT_SHARE = 0.05  # of the time, at most, goes into writing checkpoints


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


def check_rows(rows):
    """The rows of a history, or a ValueError where they are none."""
    if not isinstance(rows, list):
        raise ValueError("its history must be a list")
    for index, row in enumerate(rows):
        if row["epoch"] != index + 1 or not {*map(type, row.values())} <= {int, float}:
            raise ValueError(f"row {index + 1} is none of a history")
        row["loss"], row["val_loss"]  # a KeyError where one is missing
    return rows


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
