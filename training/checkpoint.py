"""A run after one of its epochs, on disk: all that it takes to go on as if it had not stopped.

In:  model/checkpoint.npz: numbers and a JSON text, no pickled objects.
Out: the run's settings, its history, its best weights, and where it stood.

    checkpoint = Checkpoint.load("model")
"""

import json
from pathlib import Path
from typing import NamedTuple

from support.errors import UserError
from support.files import load_arrays, write_arrays


class Checkpoint(NamedTuple):
    """A run after one of its epochs."""

    run: dict  # all that its weights depend on
    rows: list  # of the history, a dict per epoch
    best: list  # the arrays of the model with the lowest loss
    state: list  # the arrays of the model and its optimizer; [] if the run is finished

    def save(self, folder):
        """Write checkpoint.npz."""
        arrays = {f"best_{index}": array for index, array in enumerate(self.best)}
        arrays |= {f"state_{index}": array for index, array in enumerate(self.state)}
        description = json.dumps({"run": self.run, "rows": self.rows})
        write_arrays(Path(folder) / "checkpoint.npz", description=description, **arrays)

    @classmethod
    def load(cls, folder):
        """The checkpoint in a model folder, or None if there is none.

        Raises:
            UserError: it is damaged.
        """
        path = Path(folder) / "checkpoint.npz"
        if not path.exists():
            return None
        try:
            arrays = load_arrays(path)
            description = json.loads(arrays.pop("description").item())
            if any(array.dtype.kind not in "fiub" for array in arrays.values()):
                raise UserError("it holds more than numbers")
            best, state = (
                [arrays[name] for name in sorted(arrays, key=get_index) if name.startswith(kind)]
                for kind in ("best_", "state_")
            )
            rows = check_rows(description["rows"])
            return cls(dict(description["run"]), rows, best, state)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is damaged: run train.py without --resume") from error

    def check_run(self, run):
        """Raise a UserError unless this checkpoint is of the same run."""
        for name, value in json.loads(json.dumps(run)).items():
            if value != self.run.get(name):
                raise UserError(
                    f"the run to resume has {name} {self.run.get(name)}, got {value}: "
                    "give the flags and the features it began with, or leave out --resume"
                )

    def count_epochs(self, epochs):
        """How many epochs are done; all if the run is finished."""
        return len(self.rows) if self.state else epochs

    def restore(self, model):
        """Put the weights and the optimizer of a compiled model where they were.

        Raises:
            UserError: they do not fit the model.
        """
        if not self.state:
            model.set_weights(self.best)
            return
        model.optimizer.build(model.trainable_variables)
        variables = list_variables(model)
        if [tuple(v.shape) for v in variables] != [array.shape for array in self.state]:
            raise UserError("checkpoint.npz does not fit the model: run train.py without --resume")
        for variable, array in zip(variables, self.state, strict=True):
            variable.assign(array)


def load_checkpoint(folder, run):
    """The checkpoint of a run in a model folder, or None if there is none.

    Raises:
        UserError: it is damaged, or of another run.
    """
    checkpoint = Checkpoint.load(folder)
    if checkpoint:
        checkpoint.check_run(run)
    return checkpoint


def list_variables(model):
    """The weights and the optimizer's variables of a compiled model."""
    return [*model.weights, *model.optimizer.variables]


def get_index(name):
    return int(name.rpartition("_")[2])


def check_rows(rows):
    """The rows of a history, or a UserError if they are not."""
    if not isinstance(rows, list):
        raise UserError("its history must be a list")
    for index, row in enumerate(rows):
        has_numbers = {*map(type, row.values())} <= {int, float}
        if row["epoch"] != index + 1 or not has_numbers or not {"loss", "val_loss"} <= row.keys():
            raise UserError(f"row {index + 1} is not one of a history")
    return rows
