"""Choose spectrograms, send them through the trained autoencoder and write both sounds.

In:  saved_data/ as preprocess.py wrote it, model/ as train.py wrote it.
Out: samples/original/*.wav and samples/generated/*.wav, same names, named after their sources;
     samples/spectrograms.png, the pictures of the first few.

    python generate.py --num_spectrograms 5
"""

import argparse
import collections.abc
import difflib
import hashlib
import io
from pathlib import Path

import numpy as np

import preprocess
from preprocess import number

SAVED_DATA = preprocess.SAVED_DATA
MIN_MAX_VALUES_PATH = "saved_data/min_max_values/min_max_values.pkl"
SPECTROGRAMS_PATH = "saved_data/spectrograms"
MODEL = "model"
SAMPLES = "samples"
SAVE_DIR_ORIGINAL = "samples/original"
SAVE_DIR_GENERATED = "samples/generated"
NUM_SPECTROGRAMS = 5
SEED = 0

HEADROOM = 0.99  # the peak of a pair that would have clipped
MAX_PLOTTED = 5  # pieces in spectrograms.png
MAX_NAME_BYTES = 200  # of a WAV's name; file systems end at 255


class SpectrogramFiles(collections.abc.Sequence):
    """The spectrograms of a folder, (n_bins, n_frames, n_channels), each read when asked for."""

    def __init__(self, spectrograms_path, keys):
        self.spectrograms_path = spectrograms_path
        self.keys = keys

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return preprocess.load_spectrogram(self.spectrograms_path, self.keys[index])


def load_data(spectrograms_path):
    """All spectrograms below a folder and their keys.

    Returns:
        (sequence of float32 (n_bins, n_frames, n_channels), list of keys).
    """
    keys = preprocess.list_keys(spectrograms_path)
    return SpectrogramFiles(spectrograms_path, keys), keys


def select_spectrograms(
    spectrograms, file_paths, min_max_values, num_spectrograms=NUM_SPECTROGRAMS, *, files=None,
    seed=SEED,
):  # fmt: skip
    """Choose spectrograms at random, without replacement, or by name.

    Args:
        files: keys to take instead, in this order.
    Returns:
        (list of spectrograms, list of {"min", "max"}, list of keys).
    Raises:
        ValueError: a key is unknown or has no min-max values.
    """
    file_paths = list(file_paths)
    if files:
        keys = [find_key(name, file_paths) for name in files]
    else:
        rng = np.random.default_rng(seed)
        count = min(num_spectrograms, len(file_paths))
        keys = [file_paths[i] for i in rng.choice(len(file_paths), count, replace=False)]
    missing = [key for key in keys if key not in min_max_values]
    if missing:
        raise ValueError(f"{missing[0]} has no min-max values: run preprocess.py again")
    position = {key: index for index, key in enumerate(file_paths)}
    return (
        [spectrograms[position[key]] for key in keys],
        [min_max_values[key] for key in keys],
        keys,
    )


def find_key(name, keys):
    """The key of that name, with or without `.npy`; ValueError that lists the near ones."""
    for key in (name, f"{name}.npy"):
        if key in keys:
            return key
    near = difflib.get_close_matches(name, keys, n=3, cutoff=0.4) or keys[:3]
    raise ValueError(f"no spectrogram is called {name!r}: there is {', '.join(near)}")


def make_wav_names(keys):
    """One file name a key: its path with / as __, distinct and short enough for a file system."""
    names = []
    for key in keys:
        name = key.removesuffix(".npy").replace("/", "__")
        if len(name.encode("utf-8", "surrogateescape")) > MAX_NAME_BYTES or f"{name}.wav" in names:
            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            name = f"{name[-MAX_NAME_BYTES // 4 :]}-{digest}"
        names.append(f"{name}.wav")
    return names


def scale_pair(original, generated):
    """Both signals by one factor, so that neither passes +-1; (original, generated, factor)."""
    peak = max(np.abs(original).max(), np.abs(generated).max())
    factor = float(HEADROOM / peak) if peak > 1 else 1.0
    return original * factor, generated * factor, factor


def save_signals(signals, save_dir, names, sample_rate=preprocess.SAMPLE_RATE):
    """Write signals, (n_samples,) or (2, n_samples) in [-1, 1], as 16-bit WAV files."""
    import soundfile

    for signal, name in zip(signals, names, strict=True):
        buffer = io.BytesIO()
        soundfile.write(buffer, signal.T, sample_rate, subtype="PCM_16", format="WAV")
        preprocess.write_atomically(Path(save_dir) / name, buffer.getvalue())


def load_model_settings(model_folder, spectrograms_path):
    """The features' settings, which the model must share.

    Raises:
        ValueError: the model was trained on features of other settings.
    """
    if not (Path(model_folder) / "parameters.json").is_file():
        raise FileNotFoundError(f"no model in {model_folder}: run train.py first")
    settings = preprocess.load_settings(Path(model_folder) / "settings.json")
    if preprocess.load_settings(Path(spectrograms_path) / "settings.json") != settings:
        raise ValueError(
            f"{model_folder} was trained on features of other settings than {spectrograms_path}: "
            "run train.py again"
        )
    return settings


def plot_pairs(path, pairs, settings):
    """Write a picture: each original log spectrogram above its reconstruction, in Hz and s.

    Args:
        pairs: [(key, original, reconstructed)], normalised (n_bins, n_frames, n_channels).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(pairs), 5), layout="constrained")
    grid = figure.subplots(2, len(pairs), squeeze=False, sharex=True, sharey=True)
    extent = (0, settings.duration, 0, settings.sample_rate / 2)
    for column, (key, *images) in enumerate(pairs):
        for axes, image in zip(grid[:, column], images, strict=True):
            axes.imshow(
                image[..., 0], origin="lower", aspect="auto", extent=extent, vmin=0, vmax=1,
                cmap="magma", interpolation="nearest",
            )  # fmt: skip
        grid[0, column].set_title(key.removesuffix(".npy")[-32:], fontsize=8, parse_math=False)
        grid[1, column].set_xlabel("seconds")
    for axes, name in zip(grid[:, 0], ("original", "generated"), strict=True):
        axes.set_ylabel(f"{name}, Hz")
    preprocess.write_figure(path, figure, dpi=100)


def generate_pair(generator, spectrogram, min_max):
    """The original's spectrogram inverted, its reconstruction inverted, and the figures.

    Args:
        spectrogram: float32 (n_bins, n_frames, n_channels), in [0, 1], native shape.
    Returns:
        (original, generated, reconstructed spectrogram in its native shape,
        {"mse", "original_convergence", "generated_convergence"}).
    """
    from soundgenerator import measure_spectral_convergence

    image = preprocess.resize_spectrogram(spectrogram, generator.autoencoder.input_shape[:2])
    reconstructed, _ = generator.autoencoder.reconstruct(image[np.newaxis])
    figures = {"mse": float(np.square(reconstructed[0] - image).mean())}
    signals = []
    for name, shown in (("original", spectrogram), ("generated", reconstructed[0])):
        amplitude = generator.restore_amplitude(shown, min_max)
        signals.append(generator.invert(amplitude))
        figures[f"{name}_convergence"] = measure_spectral_convergence(
            amplitude, signals[-1], generator.frame_size, generator.hop_length
        )
    native = preprocess.resize_spectrogram(reconstructed[0], spectrogram.shape[:2])
    return *signals, native, figures


def generate(generator, spectrograms, min_max_values, keys, samples, settings):
    """Write the pair of WAVs of each spectrogram and a picture, and print each one's figures."""
    from soundgenerator import measure_mel_distance

    sample_rate, plotted = settings.sample_rate, []
    names = make_wav_names(keys)
    items = zip(spectrograms, min_max_values, keys, names, strict=True)
    for spectrogram, min_max, key, name in items:
        original, generated, reconstructed, figures = generate_pair(generator, spectrogram, min_max)
        if len(plotted) < MAX_PLOTTED:
            plotted.append((key, spectrogram, reconstructed))
        mel_distance = measure_mel_distance(original, generated, sample_rate)
        original, generated, factor = scale_pair(original, generated)
        save_signals([original], samples / Path(SAVE_DIR_ORIGINAL).name, [name], sample_rate)
        save_signals([generated], samples / Path(SAVE_DIR_GENERATED).name, [name], sample_rate)
        scaled = "" if factor == 1 else f", pair scaled by {factor:.3f} to avoid clipping"
        print(
            f"{key}: image error {figures['mse']:.5f}, "
            f"spectral convergence {figures['generated_convergence']:.1f} dB "
            f"(original {figures['original_convergence']:.1f} dB), "
            f"mel distance {mel_distance:.2f} dB{scaled}",
            flush=True,
        )
    plot_pairs(samples / "spectrograms.png", plotted, settings)


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--saved_data", type=Path, default=SAVED_DATA, help="folder that preprocess.py wrote")
    add("--model", default=MODEL, help="folder that train.py wrote")
    add("--samples", default=SAMPLES, help="folder to write")
    add("--num_spectrograms", type=number(int, 1), default=NUM_SPECTROGRAMS, help="pieces")
    add("--files", nargs="+", metavar="KEY", help="these pieces instead of a random choice")
    add("--seed", type=number(int, 0, 2**32 - 1), default=SEED, help="of the choice and the phase")
    return parser


def main():
    options = get_parser().parse_args()
    spectrograms_path = options.saved_data / Path(SPECTROGRAMS_PATH).name
    spectrograms, file_paths = load_data(spectrograms_path)
    min_max_path = Path(MIN_MAX_VALUES_PATH).relative_to(SAVED_DATA)
    min_max_values = preprocess.load_min_max_values(options.saved_data / min_max_path)
    settings = load_model_settings(options.model, spectrograms_path)
    chosen, chosen_min_max, keys = select_spectrograms(
        spectrograms, file_paths, min_max_values, options.num_spectrograms,
        files=options.files, seed=options.seed,
    )  # fmt: skip

    from autoencoder import Autoencoder
    from soundgenerator import SoundGenerator

    loader = preprocess.Loader(settings.sample_rate, settings.duration, settings.mono)
    generator = SoundGenerator(
        Autoencoder.load(options.model), settings.hop_length, frame_size=settings.frame_size,
        n_samples=loader.n_samples, seed=options.seed,
    )  # fmt: skip
    samples = Path(options.samples)
    generate(generator, chosen, chosen_min_max, keys, samples, settings)
    print(
        f"{len(keys)} pairs of WAVs in {samples / 'original'} and {samples / 'generated'}, "
        f"pictures in {samples / 'spectrograms.png'}"
    )


if __name__ == "__main__":
    preprocess.exit_with_one_line(main)
