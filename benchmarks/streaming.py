"""Memory and speed of training on pieces that are streamed from disk, beside those in memory.

In:  nothing; it writes --n_pieces random pieces into a temporary folder, and deletes them again.
Out: a table on stdout and as CSV: resident memory beyond that of an idle TensorFlow, and pieces
     per second. The files were just written, so that part of them may come from the page cache.

    python benchmarks/streaming.py --n_pieces 20000
"""

import argparse
import contextlib
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from support.command_line import exit_with_one_line, number
from support.files import write_csv
from training.pieces import Windows

N_PIECES = 20000
N_IN_MEMORY = 2000  # of them, for both paths
N_STEPS = 100  # timed, a round
N_WARM_UP = 10  # steps before them
N_ROUNDS = 3  # the paths take turns; the best round of each counts
PIECES_PER_TRACK = 10
COLUMNS = ("path", "pieces", "resident_gb", "pieces_per_s")


def write_pieces(folder, n_pieces, shape):
    """Write random float32 pieces in [0, 1]; their keys."""
    rng = np.random.default_rng(0)
    patterns = rng.random((50, *shape), np.float32)
    keys = []
    for index in range(n_pieces):
        key = f"{index // PIECES_PER_TRACK:06d}.wav.{index % PIECES_PER_TRACK:03d}.npy"
        np.save(Path(folder) / key, np.roll(patterns[index % 50], index, axis=1))
        keys.append(key)
    return keys


class Peak:
    """The highest resident memory of this process while a block runs, bytes."""

    def __enter__(self):
        self.bytes = 0
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.is_over.wait(0.05):
            self.bytes = max(self.bytes, psutil.Process().memory_info().rss)

    def __exit__(self, *_):
        self.is_over.set()
        self.thread.join()


def measure_idle():
    """Resident bytes once the backend has multiplied two matrices."""
    from autoencoder import time_matrix_product

    time_matrix_product("float32")
    return psutil.Process().memory_info().rss


def time_training(images, keys, precision, n_steps):
    """Pieces per second of train.train, from its N_WARM_UP-th step on."""
    from autoencoder import keras

    ends = []

    def end_batch(batch, logs=None):
        ends.append(time.perf_counter())
        callback.model.stop_training = len(ends) >= N_WARM_UP + n_steps

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=end_batch)
    windows = Windows(images, keys, dict.fromkeys(keys, {"min": -80.0, "max": 0.0}))
    with contextlib.redirect_stdout(sys.stderr):  # its epochs are not of our table
        train.train(images, epochs=9, windows=windows, precision=precision, callbacks=[callback])
    return train.BATCH_SIZE * (len(ends) - N_WARM_UP) / (ends[-1] - ends[N_WARM_UP - 1])


def measure(folder, keys, n_in_memory, n_steps):
    """Yield rows of COLUMNS: streamed from all pieces, then both paths over the same part."""
    from autoencoder import choose_precision

    idle = measure_idle()
    precision = choose_precision()
    with Peak() as peak:
        pieces = train.open_pieces(folder, None, keys, stream=True)
        speed = time_training(pieces, keys, precision, n_steps)
    yield "streamed", len(keys), (peak.bytes - idle) / 1e9, speed
    part = keys[:n_in_memory]
    paths = {"in memory": False, "streamed": True}
    speeds = dict.fromkeys(paths, 0)
    for _ in range(N_ROUNDS):
        for path, stream in paths.items():
            pieces = train.open_pieces(folder, None, part, stream)
            speeds[path] = max(speeds[path], time_training(pieces, part, precision, n_steps))
    for path in paths:  # the heap holds what earlier rounds left: no memory is told
        yield path, len(part), "", speeds[path]


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--n_pieces", type=number(int, 2), default=N_PIECES, help="to stream")
    add("--n_in_memory", type=number(int, 2), default=N_IN_MEMORY, help="of them, for both paths")
    add("--shape", type=number(int, 8), nargs=2, default=train.TARGET_SHAPE, help="bins, frames")
    add("--n_steps", type=number(int, 1), default=N_STEPS, help="timed, a round")
    add("--folder", help="where the temporary folder is made, None: the system's")
    add("--output", type=Path, default=Path("streaming.csv"), help="the table to write")
    return parser


def main():
    options = get_parser().parse_args()
    n_needed = (N_WARM_UP + options.n_steps) * train.BATCH_SIZE  # within an epoch
    if min(options.n_pieces, options.n_in_memory) < n_needed:
        raise ValueError(
            f"--n_pieces and --n_in_memory must be at least {n_needed}: lower --n_steps"
        )
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        keys = write_pieces(folder, options.n_pieces, options.shape)
        for row in measure(folder, keys, options.n_in_memory, options.n_steps):
            path, n_pieces, resident_gb, speed = row
            memory = f"{resident_gb:.2f} GB resident beyond idle" if resident_gb else ""
            print(f"{path:<10}{n_pieces:>8} pieces{speed:>8.1f} pieces/s  {memory}", flush=True)
            rows.append(row)
    print(f"streaming runs at {rows[2][3] / rows[1][3]:.2f} of the speed in memory")
    write_csv(options.output, COLUMNS, rows)


if __name__ == "__main__":
    exit_with_one_line(main)
