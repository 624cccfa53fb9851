"""Keras callbacks for the chores of a run.

In:  the losses of each epoch, and the autoencoder that learns.
Out: lines on stdout; model/model.weights.h5, parameters.json, settings.json, checkpoint.npz,
     history.csv and history.png.

    train(x_train, callbacks=make_callbacks(patience=10))
"""

import math
import time
from pathlib import Path

import numpy as np

from autoencoder import keras
from support.errors import UserError
from support.files import write_csv, write_figure
from training.checkpoint import Checkpoint, list_variables

CHECKPOINT_SHARE = 0.05  # of the time, at most, is spent on writing checkpoints


class StopOnNaN(keras.callbacks.Callback):
    """Ends a run with a UserError if its loss is not finite."""

    def on_epoch_end(self, epoch, logs):
        for name, kind in (("loss", "training"), ("val_loss", "validation")):
            if not math.isfinite(logs.get(name, 0)):
                raise UserError(
                    f"{kind} loss became {logs[name]} in epoch {epoch + 1}: lower --learning_rate"
                )


class History(keras.callbacks.Callback):
    """Keeps and prints a row per epoch: losses, learning rate and seconds."""

    def __init__(self, rows=()):
        super().__init__()
        self.rows = [*rows]
        self._started = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs):
        row = {
            "epoch": epoch + 1,
            "loss": logs["loss"],
            "val_loss": logs.get("val_loss", math.nan),
            "learning_rate": float(self.model.optimizer.learning_rate),
            "seconds": time.perf_counter() - self._started,
        }
        self.rows.append(row)
        validation = f"validation loss {row['val_loss']:.5f}, " if "val_loss" in logs else ""
        print(
            f"epoch {epoch + 1}/{self.params['epochs']}: training loss {row['loss']:.5f}, "
            f"{validation}{row['seconds']:.1f} s",
            flush=True,
        )

    def count_epochs_since_best(self):
        """Epochs since the lowest validation loss, or training loss if nothing is held out."""
        losses = [
            row["loss"] if math.isnan(row["val_loss"]) else row["val_loss"] for row in self.rows
        ]
        return len(losses) - 1 - int(np.argmin(losses))


class BestWeights(keras.callbacks.Callback):
    """Ends a run with its best weights, after `patience` epochs without better ones."""

    def __init__(self, history, patience=None, weights=None):
        super().__init__()
        self.history = history
        self.patience = patience or math.inf
        self.weights = weights

    def on_epoch_end(self, epoch, logs=None):
        n_epochs = self.history.count_epochs_since_best()
        if n_epochs == 0:
            self.weights = self.model.get_weights()
        if n_epochs >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        self.model.set_weights(self.weights)


class SaveModel(keras.callbacks.Callback):
    """Writes the best model so far, the history and checkpoints into a folder.

    Args:
        folder: the model folder.
        run: all that the weights depend on, for JSON.
        settings: the features' Settings.
        history, best: the History and BestWeights of the run.
    """

    def __init__(self, folder, run, settings, history, best):
        super().__init__()
        self.folder = Path(folder)
        self.run = run
        self.settings = settings
        self.history = history
        self.best = best
        self._saved = 0.0  # when the last checkpoint was written
        self._saving_s = 0.0  # how long that took

    def on_epoch_end(self, epoch, logs=None):
        rows = self.history.rows
        write_csv(self.folder / "history.csv", rows[0].keys(), [row.values() for row in rows])
        started = time.perf_counter()
        if started - self._saved < self._saving_s / CHECKPOINT_SHARE:
            return
        if self.history.count_epochs_since_best() == 0:
            self._save_model()
        state = [keras.ops.convert_to_numpy(value) for value in list_variables(self.model)]
        Checkpoint(self.run, rows, self.best.weights, state).save(self.folder)
        self._saved = time.perf_counter()
        self._saving_s = self._saved - started

    def _save_model(self):
        self.settings.save(self.folder / "settings.json")
        self.autoencoder.save(self.folder)

    def on_train_end(self, logs=None):
        self._save_model()
        Checkpoint(self.run, self.history.rows, self.best.weights, []).save(self.folder)
        plot_history(self.folder / "history.png", self.history.rows)


def make_callbacks(
    *, patience=None, model_folder=None, run=None, settings=None, checkpoint=None, tensorboard=None
):
    """The callbacks of a run, in the order that they depend on each other.

    Args:
        patience: epochs without a lower loss after which to stop, or None.
        model_folder: where to write, or None.
        run, settings: see SaveModel.
        checkpoint: the Checkpoint that the run goes on from, or None.
        tensorboard: a further callback, or None.
    """
    history = History(checkpoint.rows if checkpoint else ())
    best = BestWeights(history, patience, checkpoint.best if checkpoint else None)
    callbacks = [StopOnNaN(), history, best]
    if tensorboard:  # before the checkpoint: a resumed run logs all epochs after that
        callbacks.append(tensorboard)
    if model_folder is not None:
        callbacks.append(SaveModel(model_folder, run, settings, history, best))
    return callbacks


def plot_history(path, rows):
    """Draw both losses over the epochs, and the learning rate."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogy(epochs, [row["loss"] for row in rows], label="training")
    if not math.isnan(rows[-1]["val_loss"]):
        axes.semilogy(epochs, [row["val_loss"] for row in rows], label="validation (other tracks)")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.grid(alpha=0.3, which="both")
    rate_axes = axes.twinx()
    rates = [row["learning_rate"] for row in rows]
    rate_axes.plot(epochs, rates, color="grey", linestyle=":", label="learning rate")
    rate_axes.set_ylabel("learning rate")
    figure.legend(loc="outside upper center", ncols=3)
    write_figure(path, figure)
