"""Training speed beside PyTorch's, and that of pieces streamed from disk beside those in memory.

In:  nothing; random pieces are written into a temporary folder, and deleted again. They were just
     written, so part of them may come from the page cache.
Out: a table on stdout and as CSV: steps and pieces per second; the share that this is of the rate
     at which this machine multiplies matrices; resident memory beyond that of an idle backend.

    pip install torch && python -m benchmarks.training
    KERAS_BACKEND=jax python -m benchmarks.training
"""

import contextlib
import functools
import itertools
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import train
from benchmarks.reconstruction import count_operations
from preprocess import TOP_DB
from support.command_line import make_parser, number, run_script
from support.errors import UserError
from support.files import write_csv
from training.data import Pieces, Windows

SHAPE = (512, 256)  # bins and frames of a piece
N_PIECES = 20000  # to stream
N_IN_MEMORY = 2000  # of them, at most, for the comparison with memory
N_STEPS = 100  # timed in a round
N_WARM_UP = 10  # steps before them
N_ROUNDS = 3  # the programs take turns; the best round of each counts
STREAMED, IN_MEMORY = "train.py, streamed", "train.py, in memory"  # programs, both in float32
PRECISIONS = ("float32", "bfloat16")  # of the network beside PyTorch's
MATRIX_SIZE = 2048
PIECES_PER_TRACK = 10
COLUMNS = (
    "program",
    "precision",
    "pieces",
    "steps_per_s",
    "pieces_per_s",
    "share_of_matrix_product",
    "resident_gb",
)


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


def time_matrix_product(precision, n_products=2, n_rounds=5):
    """Seconds that one product of two square matrices takes, the best of some rounds."""
    from autoencoder import keras

    matrix = keras.ops.full((MATRIX_SIZE, MATRIX_SIZE), 1 / MATRIX_SIZE, precision)
    times = []
    for _ in range(n_rounds):
        started = time.perf_counter()
        product = matrix
        for _ in range(n_products):
            product = keras.ops.matmul(product, matrix)
        float(product[0, 0])  # waits for the device
        times.append((time.perf_counter() - started) / n_products)
    return min(times)


def time_steps(fit, n_steps):
    """Steps per second of a function that trains with a Keras callback, after N_WARM_UP steps."""
    from autoencoder import keras

    ends = []

    def end_batch(batch, logs=None):
        ends.append(time.perf_counter())
        timer.model.stop_training = len(ends) >= N_WARM_UP + n_steps

    timer = keras.callbacks.LambdaCallback(on_train_batch_end=end_batch)
    with contextlib.redirect_stdout(sys.stderr):  # its epochs are not rows of the table
        fit(timer)
    return n_steps / (ends[-1] - ends[N_WARM_UP - 1])


def time_train(images, keys, n_steps):
    """Steps per second of train.train on windows of images, an array or Pieces."""
    from training.callbacks import make_callbacks

    windows = Windows(images, keys, dict.fromkeys(keys, {"min": -80.0, "max": 0.0}), TOP_DB)

    def fit(timer):
        train.train(windows, epochs=9, callbacks=[*make_callbacks(), timer])

    return time_steps(fit, n_steps)


def make_ours(batch, precision):
    """A function that trains our network on one batch, and returns its steps per second."""
    from autoencoder import Autoencoder
    from training.pca_start import freeze_normalisations

    architecture = train.choose_architecture(batch.shape[1:], precision=precision)
    autoencoder = Autoencoder(**architecture)
    freeze_normalisations(autoencoder)  # as after start_as_pca
    autoencoder.compile()

    def fit(timer):
        batches = ((batch, batch) for _ in itertools.count())
        autoencoder.train(batches, None, 1, callbacks=[timer])

    return functools.partial(time_steps, fit)


def time_torch(step, n_steps):
    """Steps per second of a function that makes one step, after N_WARM_UP of them."""
    for _ in range(N_WARM_UP):
        step()
    started = time.perf_counter()
    for _ in range(n_steps):
        step()
    return n_steps / (time.perf_counter() - started)


def count_training_operations(autoencoder):
    """Multiplications and additions for one piece in a training step.

    They are those of the forward pass, and as many for the gradients of the weights and for those
    of each layer's input; but the image needs no gradient.
    """
    conv = autoencoder.encoder.get_layer("conv_0")
    image_gradient = 2 * np.prod(conv.kernel.shape) * np.prod(conv.output.shape[1:3])
    return 3 * count_operations(autoencoder.model) - image_gradient


def make_programs(folder, keys, autoencoder):
    """{(program, precision, number of pieces): function from n_steps to steps per second}."""
    images = train.load_fsdd(folder, keys=keys)
    batch = images[: train.BATCH_SIZE]
    pieces = Pieces(folder, None, keys)
    programs = {
        (IN_MEMORY, "float32", len(keys)): functools.partial(time_train, images, keys),
        (STREAMED, "float32", len(keys)): functools.partial(time_train, pieces, keys),
    }
    for precision in PRECISIONS:
        programs["ours", precision, len(batch)] = make_ours(batch, precision)
    try:
        from benchmarks.pytorch import make_step
    except ModuleNotFoundError as error:
        print(f"PyTorch is left out: {error}", file=sys.stderr)
        return programs
    for precision in PRECISIONS:
        step = make_step(batch, autoencoder, precision)
        programs["PyTorch", precision, len(batch)] = functools.partial(time_torch, step)
    return programs


def measure(folder, keys, autoencoder, n_steps):
    """Yield (program, precision, number of pieces, steps per second, resident GB or "")."""
    import psutil

    # Memory first: later the heap holds what earlier programs left.
    idle = psutil.Process().memory_info().rss
    steps_per_s = time_train(Pieces(folder, None, keys), keys, n_steps)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield STREAMED, "float32", len(keys), steps_per_s, (peak - idle) / 1e9
    programs = make_programs(folder, keys[:N_IN_MEMORY], autoencoder)
    best = dict.fromkeys(programs, 0.0)
    for _ in range(N_ROUNDS):
        for name, run in programs.items():
            best[name] = max(best[name], run(n_steps))
    for name, steps_per_s in best.items():
        yield *name, steps_per_s, ""


def print_row(program, precision, n_pieces, steps_per_s, pieces_per_s, share, resident_gb):
    memory = f", {resident_gb:.2f} GB resident beyond idle" if resident_gb else ""
    print(
        f"{program:<21}{precision:<9}{n_pieces:>6} pieces{steps_per_s:>8.2f} steps/s"
        f"{pieces_per_s:>8.1f} pieces/s{100 * share:>5.0f} % of a matrix product's{memory}",
        flush=True,
    )


def print_ratios(speeds):
    """Compare the steps per second of {(program, precision)}."""
    for precision in PRECISIONS:
        if ("PyTorch", precision) in speeds:
            ratio = speeds["ours", precision] / speeds["PyTorch", precision]
            print(f"{precision}: ours runs {ratio:.2f} times as fast as PyTorch")
    ratio = speeds[STREAMED, "float32"] / speeds[IN_MEMORY, "float32"]
    print(f"streaming runs at {ratio:.2f} of the speed in memory")


def get_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    help_text = f"pieces to stream; {N_IN_MEMORY} of them are held in memory, too"
    add("--n_pieces", type=number(int, 2), default=N_PIECES, help=help_text)
    add("--shape", type=number(int, 8), nargs=2, default=SHAPE, help="bins and frames of a piece")
    add("--n_steps", type=number(int, 1), default=N_STEPS, help="steps that are timed in a round")
    add("--folder", help="where a temporary folder is made; None: the system's")
    add("--output", default="training.csv", help="table to write")
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    n_needed = (N_WARM_UP + options.n_steps) * train.BATCH_SIZE  # within an epoch
    if min(options.n_pieces, N_IN_MEMORY) < n_needed:
        raise UserError(
            f"{options.n_steps} steps need {n_needed} pieces, but {options.n_pieces} are streamed "
            f"and at most {N_IN_MEMORY} held in memory: lower --n_steps, or raise --n_pieces"
        )
    from autoencoder import Autoencoder, keras

    autoencoder = Autoencoder(**train.choose_architecture((*options.shape, 1)))
    n_operations = train.BATCH_SIZE * count_training_operations(autoencoder)
    ceilings = {  # steps per second at the rate of a matrix product
        precision: 2 * MATRIX_SIZE**3 / time_matrix_product(precision) / n_operations
        for precision in PRECISIONS
    }
    print(f"ours on {keras.config.backend()}, in steps of {train.BATCH_SIZE} pieces")
    rows, speeds = [], {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        keys = write_pieces(folder, options.n_pieces, options.shape)
        for *name, n_pieces, speed, resident_gb in measure(
            folder, keys, autoencoder, options.n_steps
        ):
            speeds[tuple(name)] = speed
            share = speed / ceilings[name[1]]
            rows.append((*name, n_pieces, speed, train.BATCH_SIZE * speed, share, resident_gb))
            print_row(*rows[-1])
    print_ratios(speeds)
    write_csv(options.output, COLUMNS, rows)


if __name__ == "__main__":
    run_script(main)
