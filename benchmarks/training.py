"""Training speed beside PyTorch's, and what a window costs beside the network's own products.

In:  nothing; the pieces are random.
Out: a table on stdout and as CSV: steps and pieces per second; the share that this is of the rate
     at which this machine multiplies matrices. Processor milliseconds that a window costs.

    pip install torch && python -m benchmarks.training
    KERAS_BACKEND=jax python -m benchmarks.training
"""

import contextlib
import functools
import sys
import time

import numpy as np

import train
from benchmarks.reconstruction import count_operations
from support.command_line import make_parser, number, run_script
from support.files import write_csv

SHAPE = (512, 256)  # bins and frames of a piece
N_PIECES = 2000
N_STEPS = 100  # timed in a round
N_WARM_UP = 10  # steps before them
N_ROUNDS = 3  # the programs take turns; the best round of each counts
TRAIN = "train.py"  # a program: windows, normalised and stretched as they are used
PRECISIONS = ("float32", "bfloat16")
MATRIX_SIZE = 2048
PIECES_PER_TRACK = 10
COLUMNS = ("program", "precision", "steps_per_s", "pieces_per_s", "share_of_matrix_product")


def make_windows(n_pieces, shape):
    """Windows over random pieces, ten to a track."""
    from training.windows import Windows

    rng = np.random.default_rng(0)
    patterns = rng.random((50, shape[1], shape[0], 1), np.float32).astype(np.float16)
    frames = np.concatenate(
        [np.roll(patterns, index, axis=1) for index in range(-(-n_pieces // 50))]
    )
    tracks = np.arange(n_pieces) // PIECES_PER_TRACK
    pieces = frames[:n_pieces].transpose(0, 2, 1, 3)
    return Windows(pieces, tracks=tracks, batch_size=train.BATCH_SIZE, seed=0)


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


def time_window(windows, n_batches=50):
    """Processor milliseconds to (gather a window, make its image)."""
    from training.windows import make_images

    rng = np.random.default_rng(0)
    batches = [rng.integers(windows.shape[0], size=train.BATCH_SIZE) for _ in range(n_batches)]
    n_windows = n_batches * train.BATCH_SIZE
    started = time.process_time()
    gathered = [windows.gather(batch, rng) for batch in batches]
    gathering = time.process_time() - started
    make_images(gathered[0], windows.top_db)
    started = time.process_time()
    for batch in gathered:
        np.asarray(make_images(batch, windows.top_db))  # waits for the device
    making = time.process_time() - started
    return 1000 * gathering / n_windows, 1000 * making / n_windows


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


def time_train(windows, precision, n_steps):
    """Steps per second of train.train on windows."""
    from autoencoder import choose_architecture
    from training.callbacks import make_callbacks

    architecture = choose_architecture(windows.shape[1:], precision=precision)

    def fit(timer):
        callbacks = [*make_callbacks(), timer]
        train.train(windows, epochs=9, architecture=architecture, callbacks=callbacks)

    return time_steps(fit, n_steps)


def make_ours(batch, precision):
    """A function that trains our network on one batch, and returns its steps per second."""
    from autoencoder import Autoencoder, choose_architecture
    from training.pca_start import freeze_normalisations

    autoencoder = Autoencoder(**choose_architecture(batch.shape[1:], precision=precision))
    freeze_normalisations(autoencoder)  # as after start_as_pca
    autoencoder.compile()
    batches = np.concatenate([batch] * 20)

    def fit(timer):
        autoencoder.train(batches, len(batch), 10**6, callbacks=[timer])

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
    n_frames = autoencoder.n_steps * autoencoder.frames_per_step // conv.strides[1]
    image_gradient = 2 * np.prod(conv.kernel.shape) * n_frames
    return 3 * count_operations(autoencoder) - image_gradient


def make_programs(windows, autoencoder):
    """{(program, precision): function from n_steps to steps per second}."""
    batch = windows.cut(np.arange(train.BATCH_SIZE))
    programs = {}
    for precision in PRECISIONS:
        programs[TRAIN, precision] = functools.partial(time_train, windows, precision)
        programs["ours", precision] = make_ours(batch, precision)
    try:
        from benchmarks.pytorch import make_step
    except ModuleNotFoundError as error:
        print(f"PyTorch is left out: {error}", file=sys.stderr)
        return programs
    for precision in PRECISIONS:
        step = make_step(batch, autoencoder, precision)
        programs["PyTorch", precision] = functools.partial(time_torch, step)
    return programs


def print_row(program, precision, steps_per_s, pieces_per_s, share):
    print(
        f"{program:<21}{precision:<9}{steps_per_s:>8.2f} steps/s{pieces_per_s:>8.1f} pieces/s"
        f"{100 * share:>5.0f} % of a matrix product's",
        flush=True,
    )


def print_ratios(speeds):
    """Compare the steps per second of {(program, precision)}."""
    for precision in PRECISIONS:
        for program in (TRAIN, "PyTorch"):
            if (program, precision) in speeds:
                ratio = speeds["ours", precision] / speeds[program, precision]
                print(f"{precision}: ours runs {ratio:.2f} times as fast as {program}")


def get_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    help_text = "pieces that windows are cut from"
    add("--n_pieces", type=number(int, 2), default=N_PIECES, help=help_text)
    add("--shape", type=number(int, 8), nargs=2, default=SHAPE, help="bins and frames of a piece")
    add("--n_steps", type=number(int, 1), default=N_STEPS, help="steps of a round, within an epoch")
    add("--output", default="training.csv", help="table to write")
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    from autoencoder import Autoencoder, choose_architecture, keras

    autoencoder = Autoencoder(**choose_architecture((*options.shape, 1)))
    n_operations = train.BATCH_SIZE * count_training_operations(autoencoder)
    ceilings = {  # steps per second at the rate of a matrix product
        precision: 2 * MATRIX_SIZE**3 / time_matrix_product(precision) / n_operations
        for precision in PRECISIONS
    }
    print(f"ours on {keras.config.backend()}, in steps of {train.BATCH_SIZE} pieces")
    windows = make_windows(options.n_pieces, options.shape)
    gathering, making = time_window(windows)
    print(
        f"processor time of a window: {gathering:.3f} ms to gather, {making:.3f} ms for its image"
    )
    programs = make_programs(windows, autoencoder)
    speeds = dict.fromkeys(programs, 0.0)
    for _ in range(N_ROUNDS):
        for name, run in programs.items():
            speeds[name] = max(speeds[name], run(options.n_steps))
    rows = []
    for (program, precision), speed in speeds.items():
        share = speed / ceilings[precision]
        rows.append((program, precision, speed, train.BATCH_SIZE * speed, share))
        print_row(*rows[-1])
    print_ratios(speeds)
    write_csv(options.output, COLUMNS, rows)


if __name__ == "__main__":
    run_script(main)
