"""A run after one of its epochs, on disk: all that it takes to go on as if it had not stopped.

In:  model/checkpoint.npz: numbers and a JSON text, no pickled objects.
Out: the run's settings, its history, its best weights, and where it stood.

    checkpoint = Checkpoint.load("model/checkpoint.npz")
"""

import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.errors import UserError
from support.files import load_arrays, reading, write_arrays

CHECKPOINT = "checkpoint.npz"  # of a model folder that holds a run
OLD_CHECKPOINT = "old_checkpoint.npz"  # that of a model which --force is about to replace
DETAIL_CHECKPOINT = "detail_checkpoint.npz"  # of one whose autoencoder is ready
PRIOR_CHECKPOINT = "prior_checkpoint.npz"  # of one whose detail is ready, too
PARAMETERS = "parameters.json"  # of a model folder that holds a whole model
CHANGEABLE = ("epochs", "patience", "code")  # when a run is resumed


class Checkpoint(NamedTuple):
    """A run after one of its epochs."""

    run: dict  # all that its weights depend on
    rows: list  # of the history, a dict per epoch and one for the start
    best: list  # the arrays of the model with the lowest loss
    state: list  # the arrays of the model and its optimizer

    def save(self, path):
        arrays = {f"best_{index}": array for index, array in enumerate(self.best)}
        arrays |= {f"state_{index}": array for index, array in enumerate(self.state)}
        description = json.dumps({"run": self.run, "rows": self.rows})
        write_arrays(path, description=description, **arrays)

    @classmethod
    def load(cls, path):
        """The checkpoint of a path, or None if there is none.

        Raises:
            UserError: it is damaged.
        """
        if not Path(path).exists():
            return None
        with reading(path, "run train.py with --force"):
            arrays = load_arrays(path)
            description = json.loads(arrays.pop("description").item())
            best, state = (
                [array for name, array in arrays.items() if name.startswith(kind)]
                for kind in ("best_", "state_")
            )
            return cls(description["run"], description["rows"], best, state)

    def continue_as(self, run):
        """The checkpoint of a run that goes on from this one, and may be longer.

        If the network's code has changed, the user is told.

        Raises:
            UserError: it is another run.
        """
        for name, value in json.loads(json.dumps(run)).items():
            if value != self.run.get(name) and name not in CHANGEABLE:
                raise UserError(
                    f"the run to resume has {name} {self.run.get(name)}, got {value}: "
                    "give the flags and the features it began with, or --force to begin anew"
                )
        if run["code"] != self.run.get("code"):
            print("note: autoencoder.py was edited since this run began", file=sys.stderr)
        return self._replace(run=run)

    def count_finished_epochs(self):
        """Epochs of the run that are done; all of them if its patience ran out."""
        epochs, patience = self.run["epochs"], self.run["patience"] or math.inf
        is_over = count_epochs_since_best(self.rows) >= patience
        return epochs if is_over else min(len(self.rows) - 1, epochs)

    def restore(self, model):
        """Put the weights and the optimizer of a compiled model where they were.

        Raises:
            UserError: they do not fit the model.
        """
        variables = list_variables(model)  # in the order that a WindowModel has them in, too
        if [tuple(v.shape) for v in variables] != [array.shape for array in self.state]:
            raise UserError(f"{CHECKPOINT} does not fit the model: run train.py with --force")
        for variable, array in zip(variables, self.state, strict=True):
            variable.assign(array)


def load_checkpoint(folder, *, resume, force):
    """The checkpoint in a model folder to go on from, or None to begin anew.

    With force, that of a whole model waits under another name until the new model is ready; with
    resume it comes back, unless another one took its place.

    Raises:
        UserError: the folder holds a run, and neither resume nor force is asked for; or its
            checkpoint is damaged.
    """
    folder = Path(folder)
    is_whole, is_begun = (folder / PARAMETERS).exists(), (folder / CHECKPOINT).exists()
    if force and is_whole and is_begun and not (folder / OLD_CHECKPOINT).exists():
        (folder / CHECKPOINT).rename(folder / OLD_CHECKPOINT)
    elif resume and not is_begun and (folder / OLD_CHECKPOINT).exists():  # nothing took its place
        (folder / OLD_CHECKPOINT).rename(folder / CHECKPOINT)
    if force or not (is_whole or is_begun):
        if resume:
            print(f"nothing to resume in {folder}: this run begins at the beginning", flush=True)
        return None
    if not resume:
        kind = "a model" if is_whole else "a run that was interrupted"
        raise UserError(
            f"{folder} holds {kind}: add --resume to go on with it, --force to replace it, or "
            "name another --model"
        )
    checkpoint = Checkpoint.load(folder / CHECKPOINT)
    if not checkpoint:
        raise UserError(
            f"{folder} holds a model without a checkpoint to resume: add --force to replace it, "
            "or name another --model"
        )
    return checkpoint


def list_variables(model):
    """The weights and the optimizer's variables of a compiled model."""
    return [*model.weights, *model.optimizer.variables]


def find_best_row(rows):
    """The index of the lowest validation loss, or training loss if nothing is held out."""
    is_held_out = not math.isnan(rows[0]["val_loss"])
    return int(np.argmin([row["val_loss" if is_held_out else "loss"] for row in rows]))


def count_epochs_since_best(rows):
    """Epochs since the best one or, if that is later, since the peak of the learning rate.

    The start does not count: a good one is first lost, and found again at a lower rate. Until it
    is, nothing counts before the rate is half of its peak.
    """
    rates = [row["learning_rate"] for row in rows]
    least = max(rates) / (2 if find_best_row(rows) == 0 else 1)
    peak = max(index for index, rate in enumerate(rates) if rate >= least)
    best = 1 + find_best_row(rows[1:]) if len(rows) > 1 else 0
    return len(rows) - 1 - max(best, peak)
