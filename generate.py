"""Make sound with a trained autoencoder: pairs to compare, new pieces, morphs, music of any length.

In:  model/ as train.py wrote it and, but for new music, saved_data/ as preprocess.py wrote it.
Out: samples/original/*.wav and samples/generated/*.wav, same names, named after their sources;
     samples/new/*.wav; samples/index.html to hear, see and compare it all; samples/metrics.csv.

    python generate.py --num_spectrograms 5
    python generate.py --compose 60 --temperature 0.8
"""

import argparse
import collections.abc
import io
import sys
from pathlib import Path
from urllib.parse import quote

import numpy as np

import preprocess
from generation.judge import Judge
from generation.page import draw_picture, format_figures, plot_pairs, write_page
from generation.prior import Prior, choose_genre, list_near, load_training_pieces
from generation.studio import Studio
from generation.ways import (
    Item,
    Request,
    compose,
    interpolate,
    make_samples,
    make_wav_names,
    reconstruct_files,
    tour_components,
)
from support import dataset
from support.command_line import exit_with_one_line, number
from support.files import make_printable, read_json, write_atomically, write_csv
from training.splits import load_split

SAVED_DATA = preprocess.SAVED_DATA
MIN_MAX_VALUES_PATH = "saved_data/min_max_values/min_max_values.pkl"
SPECTROGRAMS_PATH = "saved_data/spectrograms"
MODEL = "model"
SAMPLES = "samples"
SAVE_DIR_ORIGINAL = "samples/original"
SAVE_DIR_GENERATED = "samples/generated"
SAVE_DIR_NEW = "samples/new"
NUM_SPECTROGRAMS = 5
TEMPERATURE = 1.0  # factor on how far new pieces stray from the typical ones
STEPS = 8  # pieces of a morph
COMPONENTS = 3  # directions of a tour
SEED = 0

HEADROOM = 0.99  # the peak of a sound that would have clipped
MAX_PLOTTED = 5  # pieces in spectrograms.png
KINDS = {  # folders of SAMPLES, and what the page calls them
    "recorded": "Recorded",
    "original": "Its spectrogram, inverted",
    "generated": "Generated",
    "new": "New",
}


class SpectrogramFiles(collections.abc.Sequence):
    """The spectrograms of a folder, (n_bins, n_frames, n_channels), each read when asked for."""

    def __init__(self, spectrograms_path, keys):
        self.spectrograms_path = spectrograms_path
        self.keys = keys

    def __len__(self):
        return len(self.keys)

    def __getitem__(self, index):
        return dataset.load_spectrogram(self.spectrograms_path, self.keys[index])


def load_data(spectrograms_path):
    """All spectrograms below a folder and their keys.

    Returns:
        (sequence of float32 (n_bins, n_frames, n_channels), list of keys).
    """
    keys = dataset.list_keys(spectrograms_path)
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
    raise ValueError(f"no spectrogram is called {name!r}: there is {list_near(name, keys)}")


def save_signals(signals, save_dir, names, sample_rate=preprocess.SAMPLE_RATE):
    """Write signals, (n_samples,) or (2, n_samples) in [-1, 1], as 16-bit WAV files."""
    import soundfile

    for signal, name in zip(signals, names, strict=True):
        buffer = io.BytesIO()
        soundfile.write(buffer, signal.T, sample_rate, subtype="PCM_16", format="WAV")
        write_atomically(Path(save_dir) / name, buffer.getvalue())


def load_model_settings(model_folder, spectrograms_path=None):
    """The settings of the features that a model was trained on, and that others must share.

    Raises:
        ValueError: the model was trained on features of other settings.
    """
    if not (Path(model_folder) / "parameters.json").is_file():
        raise FileNotFoundError(f"no model in {model_folder}: run train.py first")
    settings = dataset.load_settings(Path(model_folder) / "settings.json")
    if spectrograms_path is None:
        return settings
    if dataset.load_settings(Path(spectrograms_path) / "settings.json") != settings:
        raise ValueError(
            f"{model_folder} was trained on features of other settings than {spectrograms_path}: "
            "run train.py again"
        )
    return settings


def write_item(samples, item, settings):
    """Write an item's sounds and pictures; what the page says of it."""
    peak = max(np.abs(signal).max() for signal in item.sounds.values())
    factor = HEADROOM / peak if peak > 1 else 1.0
    players = []
    for kind, signal in item.sounds.items():
        save_signals([factor * signal], samples / kind, [f"{item.name}.wav"], settings.sample_rate)
        picture = None
        if kind in item.log_spectrograms:
            picture = f"pictures/{kind}/{item.name}.png"
            draw_picture(samples / picture, item.log_spectrograms[kind], settings)
        players.append({
            "kind": KINDS[kind], "sound": quote(f"{kind}/{item.name}.wav"),
            "picture": picture and quote(picture),
            "seconds": signal.shape[-1] / settings.sample_rate,
        })  # fmt: skip
    figures = {name: value for name, value in item.figures.items() if name != "latents"}
    if factor != 1:
        figures["scaled to avoid clipping by"] = factor
    return {"title": item.title, "players": players, "figures": format_figures(figures)}


def make_pairs(studio, spectrograms, min_max_values, keys, find_recorded, picture_path):
    """Yield the Item of each spectrogram and its reconstruction, print figures, draw the first.

    Args:
        spectrograms: float32 (n_bins, n_frames, n_channels), in [0, 1], native shape.
        find_recorded: key to the recorded signal, or to None.
    """
    from soundgenerator import measure_mel_distance, measure_spectral_convergence

    generator = studio.generator
    names = [name.removesuffix(".wav") for name in make_wav_names(keys)]
    plotted = []
    for spectrogram, min_max, key, name in zip(
        spectrograms, min_max_values, keys, names, strict=True
    ):
        image = preprocess.resize_spectrogram(spectrogram, generator.autoencoder.input_shape[:2])
        reconstructed, _ = generator.autoencoder.reconstruct(image[np.newaxis])
        figures = {"image error": float(np.square(reconstructed[0] - image).mean())}
        sounds, log_spectrograms = {}, {}
        for kind, shown in (("original", spectrogram), ("generated", reconstructed[0])):
            log_spectrograms[kind] = generator.restore_log_spectrogram(shown, min_max)
            amplitude = generator.convert_to_amplitude(log_spectrograms[kind])
            sounds[kind] = generator.invert(amplitude)
            figures[f"spectral convergence of the {kind}, dB"] = measure_spectral_convergence(
                amplitude, sounds[kind], generator.frame_size, generator.hop_length
            )
        figures["mel distance, dB"] = measure_mel_distance(
            sounds["original"], sounds["generated"], studio.sample_rate
        )
        if len(plotted) < MAX_PLOTTED:
            native = preprocess.resize_spectrogram(reconstructed[0], spectrogram.shape[:2])
            plotted.append((key, spectrogram, native))
        recorded = find_recorded(key)
        if recorded is not None:
            extractor = preprocess.LogSpectrogramExtractor(
                generator.frame_size, generator.hop_length
            )
            log_spectrogram = extractor.extract(recorded)
            log_spectrograms["recorded"] = log_spectrogram.reshape(*log_spectrogram.shape[:2], -1)
            sounds = {"recorded": recorded, **sounds}
        print(
            f"{make_printable(key)}: image error {figures['image error']:.5f}, "
            f"spectral convergence {figures['spectral convergence of the generated, dB']:.1f} dB "
            f"(original {figures['spectral convergence of the original, dB']:.1f} dB), "
            f"mel distance {figures['mel distance, dB']:.2f} dB",
            flush=True,
        )
        yield Item(name, key, sounds, log_spectrograms, figures)
    plot_pairs(picture_path, plotted, studio.settings)


def make_find_recorded(saved_data, studio):
    """A function from a key to its recorded signal, None where the audio is not there any more."""
    try:
        audio_files_dir = Path(read_json(Path(saved_data) / "source.json")["audio_files_dir"])
    except (OSError, ValueError, KeyError, TypeError):
        return lambda key: None
    settings = studio.settings
    loader = preprocess.Loader(settings.sample_rate, settings.duration, settings.mono)

    def find_recorded(key):
        try:
            path = audio_files_dir / dataset.get_track(dataset.check_key(key))
            return loader.load_piece(path, dataset.get_segment(key))
        except ValueError:
            return None

    return find_recorded


def get_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--saved_data", type=Path, default=SAVED_DATA, help="folder that preprocess.py wrote")
    add("--model", default=MODEL, help="folder that train.py wrote")
    add("--samples", type=Path, default=SAMPLES, help="folder to write")
    add("--num_spectrograms", type=number(int, 1), default=NUM_SPECTROGRAMS, help="pieces")
    add("--files", nargs="+", metavar="KEY", help="these pieces instead of a random choice")
    add("--sample", type=number(int, 1), metavar="N", help="make this many new pieces")
    add("--compose", type=number(float, 0.01), metavar="SECONDS", help="make one long new piece")
    add("--genre", help="of the new pieces: a top folder of the audio, None: any")
    add("--temperature", type=number(float, 0), default=TEMPERATURE,
        help="how far new pieces stray, 0: not at all")  # fmt: skip
    add("--interpolate", nargs=2, metavar=("KEY_A", "KEY_B"), help="morph one piece into another")
    add("--steps", type=number(int, 2), default=STEPS, help="pieces of the morph")
    add("--audio_files", nargs="+", metavar="FILE", help="songs to send through the autoencoder")
    add("--components", type=number(int, 1), nargs="?", const=COMPONENTS, metavar="N",
        help=f"tour this many main directions that were learned; alone: {COMPONENTS}")  # fmt: skip
    add("--seed", type=number(int, 0, 2**32 - 1), default=SEED, help="of all chance")
    return parser


def load_studio(options):
    """The Studio of the model."""
    from autoencoder import Autoencoder
    from soundgenerator import SoundGenerator

    settings = load_model_settings(options.model)
    generator = SoundGenerator(
        Autoencoder.load(options.model), settings.hop_length, frame_size=settings.frame_size,
        n_samples=dataset.count_samples(settings.sample_rate, settings.duration),
        seed=options.seed,
    )  # fmt: skip
    return Studio(generator, settings)


def make_judge(studio, pieces, options):
    """The Judge, or None where saved_data is not there or is of another model."""
    try:
        load_model_settings(options.model, options.saved_data / Path(SPECTROGRAMS_PATH).name)
        return Judge(studio, pieces, options.saved_data, load_held_tracks(options.model))
    except (OSError, ValueError, KeyError) as error:
        print(
            f"new pieces are not compared with training pieces: {make_printable(error)}",
            file=sys.stderr,
        )
        return None


def load_held_tracks(model_folder):
    """The audio paths that a model was not trained on; None where it does not tell."""
    path = Path(model_folder) / "split.json"
    if not path.exists():
        return None
    parts = load_split(path)
    return parts["valid"] | parts["test"]


def make_items(studio, options):
    """Yield every Item that the flags ask for, pairs where they ask for nothing else."""
    if options.audio_files:
        yield from reconstruct_files(studio, options.audio_files)
    if options.components:
        yield from tour_components(studio, load_training_pieces(options.model), options.components)
    is_new = options.audio_files or options.components or options.sample or options.compose
    if options.interpolate or not is_new:
        spectrograms_path = options.saved_data / Path(SPECTROGRAMS_PATH).name
        load_model_settings(options.model, spectrograms_path)
        spectrograms, keys = load_data(spectrograms_path)
        min_max_path = Path(MIN_MAX_VALUES_PATH).relative_to(SAVED_DATA)
        min_max_values = dataset.load_min_max_values(options.saved_data / min_max_path)
        chosen = select_spectrograms(
            spectrograms, keys, min_max_values, options.num_spectrograms,
            files=options.interpolate or options.files, seed=options.seed,
        )  # fmt: skip
        if options.interpolate:
            yield from interpolate(studio, *chosen, options.steps)
        else:
            find_recorded = make_find_recorded(options.saved_data, studio)
            picture_path = options.samples / "spectrograms.png"
            yield from make_pairs(studio, *chosen, find_recorded, picture_path)


def make_new_items(studio, prior, options):
    """Yield the new pieces that the flags ask for."""
    request = Request(options.genre, options.temperature, options.seed)
    if options.sample:
        yield from make_samples(studio, prior, options.sample, request)
    if options.compose:
        yield compose(studio, prior, options.compose, request)


def fit_prior(pieces, options):
    """The Prior over the pieces of the genre asked for."""
    chosen = choose_genre(pieces, options.genre)
    prior = Prior(chosen.latents, chosen.ranges, options.seed)
    print(
        f"prior over {len(chosen.keys)} training pieces: {prior.n_components} Gaussians, "
        f"{prior.covariance_type} covariance",
        flush=True,
    )
    return prior


def main():
    options = get_parser().parse_args()
    studio = load_studio(options)
    entries, rows, summary = [], [], {}

    def keep(item):
        entries.append(write_item(options.samples, item, studio.settings))
        figures = {name: item.figures[name] for name in item.figures if name != "latents"}
        rows.extend((item.name, name, value) for name, value in figures.items())
        sounds = ", ".join(f"{kind}/{item.name}.wav" for kind in item.sounds)
        print(f"{make_printable(item.title)}: {sounds}", flush=True)

    if options.sample or options.compose:
        pieces = load_training_pieces(options.model)
        prior = fit_prior(pieces, options)
        judge = make_judge(studio, pieces, options)
        for item in make_new_items(studio, prior, options):
            keep(judge.judge(item) if judge else item)
        if judge:
            summary = {
                f"Frechet distance from held-out pieces, {name}, dB": value
                for name, value in judge.measure_sets().items()
            }
            rows.extend(("all new pieces", name, value) for name, value in summary.items())
    for item in make_items(studio, options):
        keep(item)
    write_csv(options.samples / "metrics.csv", ("item", "figure", "value"), rows)
    write_page(options.samples, entries, format_figures(summary))
    for name, value in summary.items():
        print(f"{name}: {value:.2f}")
    print(f"{len(entries)} items in {options.samples}; open {options.samples / 'index.html'}")


if __name__ == "__main__":
    exit_with_one_line(main)
