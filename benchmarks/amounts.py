"""What more music brings: models of parts of a collection, all judged by the same held-out tracks.

In:  a folder that preprocess.py wrote.
Out: for each number of hours a model, 100 new pieces, and a row on stdout and as CSV.

    python -m benchmarks.amounts --saved_data saved_debian --hours 0.1 1
"""

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import train
from support import dataset
from support.command_line import folder_path, make_parser, number, run_script
from support.files import write_csv
from training.outputs import save_split
from training.splits import split_keys

ROOT = Path(__file__).resolve().parent.parent
N_NEW = 100  # pieces
N_VALIDATED = 400  # pieces; new ones are compared with all that are held out
DISTANCE = "kernel distance from held-out pieces, "
COVERAGE = "share of held-out pieces near "
COLUMNS = (
    *("hours", "tracks", "train_minutes", "validation_loss", "distance", "distance_of_training"),
    *("coverage", "copies", "longest_verbatim_s"),
)


def choose_tracks(keys, n_pieces, seed):
    """The keys of whole tracks at random, as near to so many pieces as they come."""
    tracks, chosen = dataset.group_by_track(keys), []
    for track in np.random.default_rng(seed).permutation([*tracks]).tolist():
        if abs(len(chosen) + len(tracks[track]) - n_pieces) < abs(len(chosen) - n_pieces):
            chosen += tracks[track]
    return chosen


def measure(saved_data, folder, hours, seed):
    """The row of a model of some hours, which is trained in a folder; what is done stays."""
    features = dataset.Features.of(saved_data)
    parts = split_keys(features, None, train.VALIDATION_SPLIT, train.SEED)
    held_out = parts["valid"]
    parts["valid"] = choose_tracks(held_out, N_VALIDATED, seed)
    parts["test"] = [key for key in held_out if key not in {*parts["valid"]}]
    n_pieces = 3600 * hours / features.settings.duration
    parts["train"] = choose_tracks(parts["train"], n_pieces, seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_split(folder / "split.json", parts)
    where, started = ["--saved_data", saved_data, "--model", folder / "model"], time.perf_counter()
    run("train.py", *where, "--split", folder / "split.json", "--resume")
    minutes = (time.perf_counter() - started) / 60
    run("generate.py", *where, "--samples", folder / "samples", "sample", N_NEW)
    with open(folder / "model" / "history.csv") as file:
        loss = min(float(row["val_loss"]) for row in csv.DictReader(file))
    with open(folder / "samples" / "metrics.csv") as file:
        figures = [(row["figure"], row["value"]) for row in csv.DictReader(file)]
    summary = dict(figures)
    copies = [value for name, value in figures if name == "copies of training audio"]
    runs = [float(value) for name, value in figures if name == "longest verbatim run, s"]
    return (
        len(parts["train"]) * features.settings.duration / 3600,
        len({*map(dataset.get_track, parts["train"])}),
        *(minutes, loss),
        float(summary[DISTANCE + "new pieces"]),
        float(summary[DISTANCE + "training pieces"]),
        float(summary[COVERAGE + "new pieces"]),
        sum(not value.startswith("0 of") for value in copies),
        max(runs),
    )


def run(script, *flags):
    subprocess.run([sys.executable, ROOT / script, *map(str, flags)], check=True)


def get_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--saved_data", type=folder_path, default="saved_debian", help="folder of features")
    add("--hours", nargs="+", type=number(float, 0.01), default=[0.1, 1.0], help="to train on")
    add("--folder", type=folder_path, default="amounts", help="for models and sounds")
    add("--seed", type=number(int, 0), default=0, help="of the choice of tracks")
    add("--output", default="amounts.csv", help="table to write")
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    rows = []
    for hours in options.hours:
        folder = options.folder / f"{hours:g}"
        rows.append(measure(options.saved_data, folder, hours, options.seed))
        print(
            ", ".join(f"{name} {value:.4g}" for name, value in zip(COLUMNS, rows[-1], strict=True))
        )
        write_csv(options.output, COLUMNS, rows)


if __name__ == "__main__":
    run_script(main)
