"""Training steps per second of our network beside the same one in PyTorch, in one run.

In:  nothing; random images of --shape.
Out: a table on stdout and as CSV: steps per second, and the share of the rate at which this
     machine multiplies float32 or bfloat16 matrices that each step reaches.

    pip install torch==2.13.0 && python benchmarks/training_speed.py
    KERAS_BACKEND=jax python benchmarks/training_speed.py
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from reconstruction import count_operations

import train
from support.command_line import exit_with_one_line, number
from support.files import write_csv

SHAPE = (*train.TARGET_SHAPE, 1)
BATCH_SIZE = train.BATCH_SIZE
N_STEPS = 20
N_ROUNDS = 3  # the programs take turns; the best round of each counts
PRECISIONS = ("float32", "bfloat16")
MATRIX_SIZE = 2048
COLUMNS = ("program", "precision", "steps_per_s", "gflop_per_s", "share_of_matrix_product")


def make_ours(images, latent_space_dim, precision):
    """A function that trains our autoencoder for a number of steps."""
    from autoencoder import Autoencoder, keras

    keras.utils.set_random_seed(0)
    shape = images.shape[1:]
    autoencoder = Autoencoder(shape, *train.choose_layers(shape), latent_space_dim)
    autoencoder.hold_normalisations()  # as after start_as_pca
    autoencoder.set_precision(precision)
    autoencoder.compile(train.LEARNING_RATE)

    batch = keras.ops.convert_to_tensor(images)  # prepared once, as PyTorch's is

    def run(n_steps):
        for _ in range(n_steps):
            autoencoder.model.train_on_batch(batch, batch)

    return run, autoencoder


def make_torch(images, autoencoder, precision):
    """The same layers, optimizer and loss in PyTorch, channels last, bins folded into channels."""
    import torch

    from autoencoder import BETA_2

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    n, height, width, channels = images.shape
    folded = images.transpose(0, 1, 3, 2).reshape(n, height * channels, 1, width)
    batch = torch.from_numpy(folded).contiguous(memory_format=torch.channels_last)
    model = build_torch_model(autoencoder).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), train.LEARNING_RATE, betas=(0.9, BETA_2))

    def run(n_steps):
        for _ in range(n_steps):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                output = model(batch)
            loss = torch.nn.functional.mse_loss(output.float(), batch)
            loss.backward()
            optimizer.step()
        loss.item()  # waits for it

    return run


def build_torch_model(autoencoder):
    from torch import nn

    def make_norm(channels):
        return nn.BatchNorm2d(channels).eval().requires_grad_(False)

    convs = [
        autoencoder.encoder.get_layer(f"conv_{index}")
        for index in range(len(autoencoder.conv_filters))
    ]
    encoder, decoder = [], []
    for index, conv in enumerate(convs):
        channels, width = conv.input.shape[-1], conv.input.shape[2]
        kernel, strides, padding = conv.kernel_size, conv.strides, (0, conv.kernel_size[1] // 2)
        encoder += [nn.Conv2d(channels, conv.filters, kernel, strides, padding), nn.ReLU(),
                    make_norm(conv.filters)]  # fmt: skip
        short = (conv.output.shape[2] - 1) * strides[1] - 2 * padding[1] + kernel[1]
        decoder[:0] = [nn.ConvTranspose2d(
            conv.filters, channels, kernel, strides, padding, (0, width - short)
        )] + ([nn.ReLU(), make_norm(channels)] if index else [])  # fmt: skip
    _, height, width, channels = autoencoder.encoder.get_layer("flatten").input.shape
    n_features, n_latent = height * width * channels, autoencoder.latent_space_dim
    return nn.Sequential(
        *encoder, nn.Flatten(), nn.Linear(n_features, n_latent), nn.Linear(n_latent, n_features),
        nn.Unflatten(1, (channels, height, width)), *decoder,
    )  # fmt: skip


def measure(programs, n_steps, n_rounds):
    """{(program, precision): the best round's steps per second}; they take turns."""
    best = {}
    for run in programs.values():
        run(3)  # tracing and first allocations
    for _ in range(n_rounds):
        for name, run in programs.items():
            started = time.perf_counter()
            run(n_steps)
            rate = n_steps / (time.perf_counter() - started)
            best[name] = max(best.get(name, 0), rate)
    return best


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--shape", type=number(int, 1), nargs=3, default=SHAPE, help="bins, frames, channels")
    add("--batch_size", type=number(int, 1), default=BATCH_SIZE, help="pieces")
    add("--latent_space_dim", type=number(int, 1), default=train.LATENT_SPACE_DIM, help="size")
    add("--n_steps", type=number(int, 1), default=N_STEPS, help="a round")
    add("--matrix_size", type=number(int, 1), default=MATRIX_SIZE, help="of the ceiling's product")
    add("--output", type=Path, default=Path("training_speed.csv"), help="the table to write")
    return parser


def main():
    options = get_parser().parse_args()
    from autoencoder import keras, time_matrix_product

    rng = np.random.default_rng(0)
    images = rng.random((options.batch_size, *options.shape), np.float32)
    programs, ceilings, n_operations = {}, {}, 0
    ours = f"ours, {keras.config.backend()}"
    for precision in PRECISIONS:
        run, autoencoder = make_ours(images, options.latent_space_dim, precision)
        programs[ours, precision] = run
        # Forward, and backward for the weights and for all inputs but the image itself.
        conv = autoencoder.encoder.get_layer("conv_0")
        image_gradient = 2 * np.prod(conv.kernel.shape) * np.prod(conv.output.shape[1:3])
        n_operations = 3 * count_operations(autoencoder.model) - image_gradient
        n_operations *= options.batch_size
        try:
            programs["PyTorch", precision] = make_torch(images, autoencoder, precision)
        except ModuleNotFoundError:
            print("PyTorch is not installed: ours alone is timed", file=sys.stderr)
        seconds = time_matrix_product(precision, options.matrix_size, n_products=2)
        ceilings[precision] = 2 * options.matrix_size**3 / seconds / 1e9  # GFLOP/s
    rows = []
    for (program, precision), rate in measure(programs, options.n_steps, N_ROUNDS).items():
        speed = rate * n_operations / 1e9
        rows.append(dict(zip(COLUMNS, (
            program, precision, rate, speed, speed / ceilings[precision],
        ), strict=True)))  # fmt: skip
        print(f"{program:<18}{precision:<10}{rate:>8.2f} steps/s{speed:>9.1f} GFLOP/s"
              f"{100 * speed / ceilings[precision]:>7.0f} % of a matrix product's")  # fmt: skip
    rates = {(row["program"], row["precision"]): row["steps_per_s"] for row in rows}
    for precision in PRECISIONS:
        if ("PyTorch", precision) in rates:
            ratio = rates[ours, precision] / rates["PyTorch", precision]
            print(f"{precision}: ours runs {ratio:.2f} times as fast as PyTorch")
    write_csv(options.output, COLUMNS, [row.values() for row in rows])


if __name__ == "__main__":
    exit_with_one_line(main)
