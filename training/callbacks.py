"""Keras callbacks for the chores of a run.

In:  the losses of each epoch, and the autoencoder that learns.
Out: lines on stdout; model/checkpoint.npz.

    train(x_train, callbacks=make_callbacks(patience=10))
"""

import datetime
import math
import time

from tqdm import tqdm

from autoencoder import keras
from support.errors import UserError
from support.files import make_figure, write_figure
from support.workers import keep_freed_memory
from training.checkpoint import Checkpoint, count_epochs_since_best, find_best_row, list_variables

CHECKPOINT_SHARE = 0.05  # of the time, at most, is spent on writing checkpoints
BAR_DELAY_S = 5  # seconds of an epoch after which a terminal shows a bar


class History(keras.callbacks.Callback):
    """Keeps and prints a row per epoch: losses, learning rate and seconds.

    A loss that is not finite ends the run with a UserError.

    Row 0 is the start, before any training; without validation its loss is the training loss.
    """

    def __init__(self, rows=()):
        super().__init__()
        self.rows = [*rows]
        self._started = 0.0
        self._bar = None

    def on_train_begin(self, logs=None):
        if self.rows:
            return
        started = time.perf_counter()
        images = self.x_train if self.x_validation is None else self.x_validation
        loss = self.model.evaluate(images, verbose=0)
        losses = (
            {"loss": loss} if self.x_validation is None else {"loss": math.nan, "val_loss": loss}
        )
        self._add(0, losses, 0.0, time.perf_counter() - started)

    def on_epoch_begin(self, epoch, logs=None):
        keep_freed_memory()  # TensorFlow 2.21 has glibc do the opposite when it begins to read
        self._started = time.perf_counter()
        self._bar = tqdm(
            total=self.params["steps"],
            desc=f"epoch {epoch + 1}",
            unit="batch",
            leave=False,
            delay=BAR_DELAY_S,
            disable=None,
        )

    def on_train_batch_end(self, batch, logs=None):
        self._bar.update()

    def on_epoch_end(self, epoch, logs):
        self._bar.close()
        if not all(map(math.isfinite, logs.values())):
            raise UserError(f"the loss of epoch {epoch + 1} is not finite: lower --learning_rate")
        rate = float(self.model.optimizer.learning_rate)
        self._add(epoch + 1, logs, rate, time.perf_counter() - self._started)

    def _add(self, epoch, losses, learning_rate, seconds):
        row = {
            "epoch": epoch,
            "loss": losses["loss"],
            "val_loss": losses.get("val_loss", math.nan),
            "learning_rate": learning_rate,
            "seconds": seconds,
        }
        self.rows.append(row)
        texts = [
            f"{kind} loss {row[name]:.5f}"
            for name, kind in (("loss", "training"), ("val_loss", "validation"))
            if not math.isnan(row[name])
        ]
        if epoch:
            texts.append(f"{seconds:.1f} s")
        n_left = self.params["epochs"] - epoch
        if epoch and n_left:
            texts.append(f"{datetime.timedelta(seconds=round(n_left * seconds))} left")
        print(f"epoch {epoch}/{self.params['epochs']}: {', '.join(texts)}", flush=True)


class BestWeights(keras.callbacks.Callback):
    """Ends a run with its best weights, which may be the start's.

    Args:
        history: the run's History.
        patience: epochs without better weights after which to stop, or None.
        weights: the best so far, of a run that is resumed.
    """

    def __init__(self, history, patience=None, weights=None):
        super().__init__()
        self.history = history
        self.patience = patience or math.inf
        self.weights = weights

    def on_train_begin(self, logs=None):
        if self.weights is None:
            self.weights = self.model.get_weights()

    def on_epoch_end(self, epoch, logs=None):
        if find_best_row(self.history.rows) == len(self.history.rows) - 1:
            self.weights = self.model.get_weights()
        if count_epochs_since_best(self.history.rows) >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if find_best_row(self.history.rows) == 0 < len(self.history.rows) - 1:
            print("no epoch was better than the start, which is kept: train longer", flush=True)
        self.model.set_weights(self.weights)


class SaveCheckpoint(keras.callbacks.Callback):
    """Writes checkpoints, the last one when the last epoch ends.

    Args:
        path: of the file.
        run: all that the weights depend on, for JSON.
        history, best: the History and BestWeights of the run.
    """

    def __init__(self, path, run, history, best):
        super().__init__()
        self.path = path
        self.run = run
        self.history = history
        self.best = best
        self._saved = 0.0  # when the last checkpoint was written
        self._saving_s = 0.0  # how long that took

    def on_epoch_end(self, epoch, logs=None):
        started = time.perf_counter()
        is_last = epoch + 1 == self.params["epochs"] or self.model.stop_training
        if not is_last and started - self._saved < self._saving_s / CHECKPOINT_SHARE:
            return
        state = [keras.ops.convert_to_numpy(value) for value in list_variables(self.model)]
        Checkpoint(self.run, self.history.rows, self.best.weights, state).save(self.path)
        self._saved = time.perf_counter()
        self._saving_s = self._saved - started


def make_callbacks(*, patience=None, path=None, run=None, checkpoint=None, tensorboard=None):
    """The callbacks of a run, in the order that they depend on each other.

    Args:
        patience: epochs without a lower loss after which to stop, or None.
        path: of the checkpoints to write, or None.
        run: see SaveCheckpoint.
        checkpoint: the Checkpoint that the run goes on from, or None.
        tensorboard: a further callback, or None.
    """
    history = History(checkpoint.rows if checkpoint else ())
    best = BestWeights(history, patience, checkpoint.best if checkpoint else None)
    callbacks = [history, best]
    if tensorboard:  # before the checkpoint: a resumed run logs all epochs after that
        callbacks.append(tensorboard)
    if path is not None:
        callbacks.append(SaveCheckpoint(path, run, history, best))
    return callbacks


def plot_history(path, rows):
    """Draw both losses over the epochs, and the learning rate."""
    epochs = [row["epoch"] for row in rows]
    figure = make_figure(8, 4.5)
    axes = figure.add_subplot()
    axes.plot(epochs, [row["loss"] for row in rows], label="training")
    if not all(math.isnan(row["val_loss"]) for row in rows):
        axes.plot(epochs, [row["val_loss"] for row in rows], label="validation (other tracks)")
    if any(row["loss"] > 0 for row in rows):  # not after training on silence alone
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.grid(alpha=0.3, which="both")
    rate_axes = axes.twinx()
    rates = [row["learning_rate"] for row in rows]
    rate_axes.plot(epochs, rates, color="grey", linestyle=":", label="learning rate")
    rate_axes.set_ylabel("learning rate")
    figure.legend(loc="outside upper center", ncols=3)
    write_figure(path, figure)
