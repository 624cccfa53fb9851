"""Held-out error of the autoencoder, seen and heard, beside the mean, PCA and the plain recipe.

In:  a folder that preprocess.py wrote, and the audio it was made from.
Out: a table on stdout and as CSV, and a figure: error over training time, error and sound over
     the size of the bottleneck.

    python benchmarks/reconstruction.py --saved_data saved_mine --held_out '*/x.wav' --budget_s 240
"""

import argparse
import contextlib
import csv
import fnmatch
import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import preprocess
import train
from preprocess import number

LATENT_SPACE_DIMS = (128,)
BUDGET_S = 240.0  # of training, for each trained method and bottleneck
PLAIN_FILTERS = (32, 64, 128, 256)
PLAIN_LEARNING_RATE = 1e-3
PLAIN_BATCH_SIZE = 32
N_CURVE = 24  # held-out errors over a training run
N_HEARD = 60  # held-out pieces whose sound is compared, at most
METHODS = ("mean", "pca", "pca_windows", "plain", "ours")
COLUMNS = (
    "method", "latent_space_dim", "held_out_mse", "training_mse", "mel_distance_db", "seconds",
    "steps", "parameters", "operations_per_piece",
)  # fmt: skip


class Split:
    """The pieces of a folder, training and held out, and the sound of the held-out ones."""

    def __init__(self, saved_data, patterns):
        spectrograms_path = Path(saved_data) / preprocess.SPECTROGRAMS_SAVE_DIR
        self.settings = preprocess.load_settings(spectrograms_path / "settings.json")
        values = preprocess.load_min_max_values(preprocess.get_min_max_path(saved_data))
        keys = preprocess.list_keys(spectrograms_path)
        if patterns:
            held = np.array([is_held_out(key, patterns) for key in keys])
        else:
            held = train.split_by_track(keys, train.VALIDATION_SPLIT, train.SEED)
        if held.all() or not held.any():
            raise ValueError(f"{held.sum()} of {len(keys)} pieces are held out: see --held_out")
        self.held_keys = [key for key, is_held in zip(keys, held, strict=True) if is_held]
        training_keys = [key for key, is_held in zip(keys, held, strict=True) if not is_held]
        self.x_train = train.load_fsdd(spectrograms_path, None, keys=training_keys)
        self.x_held = train.load_fsdd(spectrograms_path, None, keys=self.held_keys)
        self.windows = train.Windows(self.x_train, training_keys, values, self.settings.top_db)
        self.min_max_values = [values[key] for key in self.held_keys]
        source = json.loads((Path(saved_data) / "source.json").read_text())
        self.audio_files_dir = Path(source["audio_files_dir"])

    def load_heard(self, n_heard):
        """Indices of some held-out pieces, evenly spaced, and their recorded signals."""
        count = min(n_heard, len(self.held_keys))
        indices = np.linspace(0, len(self.held_keys) - 1, count).round().astype(int)
        loader = preprocess.Loader(
            self.settings.sample_rate, self.settings.duration, self.settings.mono
        )
        signals = []
        for index in indices:
            key = self.held_keys[index]
            path = self.audio_files_dir / preprocess.get_track(key)
            signal = loader.load_pieces(path)[int(key.rsplit(".", 2)[1])]
            missing = loader.n_samples - signal.shape[-1]
            signals.append(preprocess.Padder().right_pad(signal, missing))
        return indices, signals


def is_held_out(key, patterns):
    track = preprocess.get_track(key)
    return any(fnmatch.fnmatchcase(track, pattern) for pattern in patterns)


class Ear:
    """Mel distances of reconstructions from what was recorded."""

    def __init__(self, split, n_heard):
        from soundgenerator import SoundGenerator

        self.indices, self.signals = split.load_heard(n_heard)
        self.settings = split.settings
        self.min_max_values = [split.min_max_values[index] for index in self.indices]
        self.generator = SoundGenerator(
            None, split.settings.hop_length, frame_size=split.settings.frame_size,
            n_samples=self.signals[0].shape[-1],
        )  # fmt: skip

    def measure(self, images, invert=None):
        """The mean mel distance in dB of held-out images' sounds.

        Args:
            images: float32 (n, height, width, channels), all held-out pieces.
            invert: amplitude to signal, instead of the SoundGenerator's.
        """
        from soundgenerator import measure_mel_distance

        distances = []
        for index, signal, min_max in zip(
            self.indices, self.signals, self.min_max_values, strict=True
        ):
            amplitude = self.generator.restore_amplitude(images[index], min_max)
            sound = (invert or self.generator.invert)(amplitude)
            distances.append(measure_mel_distance(signal, sound, self.settings.sample_rate))
        return float(np.mean(distances))

    def invert_zero_phase(self, amplitude):
        """What earlier programs called Griffin-Lim: the inverse transform of the magnitude."""
        import librosa

        return librosa.istft(
            amplitude, hop_length=self.generator.hop_length, n_fft=self.generator.frame_size,
            length=self.generator.n_samples,
        )  # fmt: skip


class Curve:
    """Held-out errors over the seconds of a training run, the measuring itself left out."""

    def __init__(self, model, x_held, n_epochs):
        self.model = model
        self.x_held = x_held
        self.every = max(1, n_epochs // N_CURVE)
        self.points = []
        self.n_steps = 0
        self.paused = 0.0
        self.started = time.perf_counter()

    def end_batch(self, batch, logs=None):
        self.n_steps += 1

    def end_epoch(self, epoch, logs=None):
        if (epoch + 1) % self.every == 0:
            self.measure()

    def measure(self):
        reached = time.perf_counter()
        error = measure_error(self.x_held, predict(self.model, self.x_held))
        self.points.append((reached - self.started - self.paused, error))
        self.paused += time.perf_counter() - reached

    def get_callback(self):
        from autoencoder import keras

        return keras.callbacks.LambdaCallback(
            on_train_batch_end=self.end_batch, on_epoch_end=self.end_epoch
        )


def predict(model, images):
    """What a model makes of images, clipped to [0, 1], a batch at a time."""
    from autoencoder import predict_in_batches

    return predict_in_batches(model, images).astype(np.float32).clip(0, 1)


def measure_error(images, reconstructed):
    return float(np.square(images - reconstructed).mean(dtype=np.float64))


def fit_mean(split):
    mean = split.x_train.mean(axis=0)
    return lambda images: np.broadcast_to(mean, images.shape)


def fit_pca(images, latent_space_dim):
    from sklearn.decomposition import PCA

    pca = PCA(min(latent_space_dim, len(images)), svd_solver="randomized", random_state=0)
    pca.fit(images.reshape(len(images), -1))

    def reconstruct(images):
        latents = pca.transform(images.reshape(len(images), -1))
        return pca.inverse_transform(latents).reshape(images.shape).clip(0, 1)

    return reconstruct


def count_operations(model):
    """Multiplications and additions of one piece through the layers with kernels."""
    from autoencoder import keras

    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            total += count_operations(layer)
        elif isinstance(layer, keras.layers.Conv2DTranspose):
            total += 2 * np.prod(layer.kernel.shape) * np.prod(layer.input.shape[1:3])
        elif isinstance(layer, keras.layers.Conv2D):
            total += 2 * np.prod(layer.kernel.shape) * np.prod(layer.output.shape[1:3])
        elif isinstance(layer, keras.layers.Dense):
            total += 2 * np.prod(layer.kernel.shape)
    return int(total)


def build_plain(split, latent_space_dim):
    """The plain recipe: strides of 2, BatchNormalization at Keras's momentum, a sigmoid."""
    from autoencoder import Autoencoder, keras

    keras.utils.set_random_seed(0)
    n_layers = len(PLAIN_FILTERS)
    plain = Autoencoder(
        split.x_train.shape[1:], PLAIN_FILTERS, [3] * n_layers, [2] * n_layers, latent_space_dim
    )
    for layer in plain.encoder.layers + plain.decoder.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.99
    output = keras.layers.Activation("sigmoid")(plain.model.output)
    model = keras.Model(plain.model.input, output)
    model.compile(keras.optimizers.Adam(PLAIN_LEARNING_RATE), "mse")
    return model


def fit_plain(split, latent_space_dim, budget_s):
    """(model, Curve) of the plain recipe after its budget, stopped in the middle of an epoch."""
    from autoencoder import keras

    model = build_plain(split, latent_space_dim)
    curve = Curve(model, split.x_held, N_CURVE)
    next_s = budget_s / N_CURVE

    def stop_in_time(batch, logs=None):
        nonlocal next_s
        curve.end_batch(batch)
        spent = time.perf_counter() - curve.started - curve.paused
        if spent >= next_s:
            curve.measure()
            next_s += budget_s / N_CURVE
        if spent >= budget_s:  # in the middle of an epoch, where setting stop_training does not
            raise TimeoutError

    callback = keras.callbacks.LambdaCallback(on_train_batch_end=stop_in_time)
    with contextlib.suppress(TimeoutError):
        model.fit(split.x_train, split.x_train, batch_size=PLAIN_BATCH_SIZE, epochs=10**6,
            callbacks=[callback], verbose=0)  # fmt: skip
    return model, curve


def fit_ours(split, latent_space_dim, budget_s):
    """(model, Curve) of train.train with as many epochs as fill the budget, start included."""
    from autoencoder import keras

    def fit(epochs, callback):
        return train.train(
            split.x_train, epochs=epochs, windows=split.windows, callbacks=[callback],
            latent_space_dim=latent_space_dim,
        )  # fmt: skip

    # A trial that is thrown away tells how long the start and an epoch take.
    ends, started = [], time.perf_counter()
    fit(3, keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter())
    ))  # fmt: skip
    epoch_s = (ends[2] - ends[0]) / 2
    n_epochs = max(2, int((budget_s - (ends[0] - started - epoch_s)) / epoch_s))
    curve = Curve(None, split.x_held, n_epochs)

    def take_model(logs=None):
        curve.model = callback.model
        curve.measure()

    callback = keras.callbacks.LambdaCallback(
        on_train_begin=take_model, on_train_batch_end=curve.end_batch, on_epoch_end=curve.end_epoch
    )
    autoencoder = fit(n_epochs, callback)
    curve.model = autoencoder.model
    return autoencoder.model, curve


def compare(split, latent_space_dims, budget_s, methods, ear):
    """Yield (row of COLUMNS, Curve or None) for every method and bottleneck."""
    drawn = split.windows.draw_start(np.random.default_rng(0))

    def make_row(method, reconstruct, dim=0, seconds=0.0, steps=0, parameters=0, operations=0):
        shown = split.x_train[: len(split.x_held)]
        held = reconstruct(split.x_held)
        return dict(zip(COLUMNS, (
            method, dim, measure_error(split.x_held, held),
            measure_error(shown, reconstruct(shown)), ear.measure(held), seconds, steps,
            parameters, operations,
        ), strict=True))  # fmt: skip

    if "mean" in methods:
        yield make_row("mean spectrogram", fit_mean(split)), None
    for dim in latent_space_dims:
        size = dim * split.x_train[0].size
        for method, images in (("pca", split.x_train), ("pca_windows", drawn)):
            if method in methods:
                started = time.perf_counter()
                reconstruct = fit_pca(images, dim)
                seconds = time.perf_counter() - started
                name = {"pca": "PCA", "pca_windows": "PCA of windows"}[method]
                yield make_row(name, reconstruct, dim, seconds, 0, 2 * size, 4 * size), None
        for method, fit in (("plain", fit_plain), ("ours", fit_ours)):
            if method in methods:
                model, curve = fit(split, dim, budget_s)
                curve.measure()
                row = make_row(
                    {"plain": "plain recipe", "ours": "ours"}[method],
                    lambda images, model=model: predict(model, images), dim, curve.points[-1][0],
                    curve.n_steps, model.count_params(), count_operations(model),
                )  # fmt: skip
                yield row, curve


def measure_bounds(split, ear):
    """The rows of the untouched spectrograms, inverted as earlier programs did and as we do."""
    for method, invert in (("zero-phase istft", ear.invert_zero_phase), ("Griffin-Lim", None)):
        row = dict.fromkeys(COLUMNS, 0)
        row["method"] = f"untouched, {method}"
        row["mel_distance_db"] = ear.measure(split.x_held, invert)
        yield row


def print_row(row):
    print(
        f"{row['method']:<28}{row['latent_space_dim'] or '':>6}{row['held_out_mse']:>10.6f}"
        f"{row['training_mse']:>10.6f}{row['mel_distance_db']:>8.2f} dB{row['seconds']:>8.1f} s"
        f"{row['steps']:>7}{row['parameters'] / 1e6:>8.2f} M"
        f"{row['operations_per_piece'] / 1e6:>9.1f} M",
        flush=True,
    )


def print_speedup(curves):
    """Say how much sooner ours reached the error at which the plain recipe ended."""
    for (method, dim), curve in curves.items():
        ours = curves.get(("ours", dim))
        if method != "plain recipe" or not ours:
            continue
        seconds, error = curve.points[-1]
        reached = next((s for s, e in ours.points if e <= error), None)
        if reached:
            print(
                f"latent {dim}: the plain recipe ends at {error:.5f} after {seconds:.0f} s; "
                f"ours is there after {reached:.1f} s, {seconds / reached:.0f} times sooner"
            )


def plot(path, rows, curves):
    """Write a figure: error over time for one bottleneck size, else both measures over the size."""
    from matplotlib.figure import Figure

    dims = sorted({row["latent_space_dim"] for row in rows} - {0})
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if len(dims) > 1:
        plot_over_size(left, rows, dims, "held_out_mse", "mean squared error, held out")
        plot_over_size(right, rows, dims, "mel_distance_db", "mel distance, dB, held out")
    else:
        plot_over_time(left, rows, curves)
        right.barh([row["method"] for row in rows], [row["mel_distance_db"] for row in rows])
        right.invert_yaxis()
        right.bar_label(right.containers[0], fmt="%.2f", padding=3)
        right.set(xlabel="mel distance, dB, held out")
        right.margins(x=0.12)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
    left.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_over_size(axes, rows, dims, column, label):
    for method in dict.fromkeys(row["method"] for row in rows if row["latent_space_dim"]):
        chosen = [row for row in rows if row["method"] == method]
        sizes = [row["latent_space_dim"] for row in chosen]
        axes.plot(sizes, [row[column] for row in chosen], "o-", label=method)
    axes.set(xlabel="latent_space_dim", ylabel=label, xscale="log")
    axes.set_xticks(dims, [str(dim) for dim in dims])
    axes.minorticks_off()


def plot_over_time(axes, rows, curves):
    for (method, _), curve in curves.items():
        axes.loglog(*zip(*curve.points, strict=True), "o-", markersize=3, label=method)
    untrained = [row for row in rows if row["method"].startswith(("mean", "PCA"))]
    for row, style in zip(untrained, (":", "--", "-."), strict=False):
        axes.axhline(row["held_out_mse"], color="grey", linestyle=style, label=row["method"])
    axes.set(xlabel="seconds of training", ylabel="mean squared error, held out")


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--saved_data", default=preprocess.SAVED_DATA, help="folder that preprocess.py wrote")
    add("--held_out", nargs="+", metavar="PATTERN",
        help="tracks not to train on, such as '*_[0-4].wav', None: a seeded tenth")  # fmt: skip
    add("--latent_space_dims", type=number(int, 1), nargs="+", default=LATENT_SPACE_DIMS,
        help="bottlenecks to compare")  # fmt: skip
    add("--budget_s", type=number(float, 1), default=BUDGET_S, help="seconds a trained method")
    add("--methods", choices=METHODS, nargs="+", default=METHODS, help="rows to make")
    add("--output", type=Path, default=Path("reconstruction.csv"), help="the table to write; "
        "the figure beside it")  # fmt: skip
    return parser


def main():
    options = get_parser().parse_args()
    split = Split(options.saved_data, options.held_out)
    ear = Ear(split, N_HEARD)
    rows, curves = [], {}
    print(f"{len(split.x_train)} training pieces, {len(split.x_held)} held out; columns: "
          f"{', '.join(COLUMNS)}")  # fmt: skip
    for row in measure_bounds(split, ear):
        rows.append(row)
        print_row(row)
    compared = compare(split, options.latent_space_dims, options.budget_s, options.methods, ear)
    for row, curve in compared:
        rows.append(row)
        if curve:
            curves[row["method"], row["latent_space_dim"]] = curve
        print_row(row)
    print_speedup(curves)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with open(options.output, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    plot(options.output.with_suffix(".png"), rows, curves)
    print(f"table in {options.output}, figure in {options.output.with_suffix('.png')}")


if __name__ == "__main__":
    preprocess.exit_with_one_line(main)
