"""Make sound with a trained autoencoder: pairs to compare, new pieces, morphs, music of any length.

In:  model/ as train.py wrote it and, but for new music, saved_data/ as preprocess.py wrote it.
Out: samples/original/*.wav and samples/generated/*.wav, same names, named after their sources;
     samples/new/*.wav; samples/index.html to hear, see and compare it all; samples/metrics.csv.

    python generate.py --num_spectrograms 5
    python generate.py --compose 60 --temperature 0.8
"""

import io
import sys
from pathlib import Path

import numpy as np

from generation.modes import (
    Sources,
    compare_pieces,
    compose,
    make_samples,
    morph,
    reconstruct_files,
    tour_components,
)
from generation.prior import list_similar, load_training_pieces
from preprocess import SAMPLE_RATE
from support import dataset
from support.command_line import make_parser, number, run_script
from support.errors import UserError
from support.files import make_printable, write_atomically
from support.settings import Settings
from training.data import Pieces
from training.splits import load_split

SPECTROGRAMS_PATH = "saved_data/spectrograms"
MIN_MAX_VALUES_PATH = "saved_data/min_max_values/min_max_values.pkl"
MODEL = "model"
SAMPLES = "samples"
SAVE_DIR_RECORDED = "samples/recorded"
SAVE_DIR_ORIGINAL = "samples/original"
SAVE_DIR_GENERATED = "samples/generated"
SAVE_DIR_NEW = "samples/new"
NUM_SPECTROGRAMS = 5
TEMPERATURE = 1.0  # factor on how far new pieces stray from the typical ones
STEPS = 8  # pieces of a morph
COMPONENTS = 3  # directions of a tour
SEED = 0

HEADROOM = 0.99  # peak of a sound that would have clipped
BATCH_SIZE = 32  # pieces reconstructed at a time
PRINTED_FIGURES = ("image error", "spectral convergence of the generated, dB", "mel distance, dB")


def load_data(spectrograms_path):
    """All spectrograms below a folder, read when they are used, and their keys.

    Returns:
        (sequence of float32 (n_bins, n_frames, n_channels), list of keys).
    """
    file_paths = dataset.list_keys(spectrograms_path)
    return Pieces(spectrograms_path, None, file_paths), file_paths


def select_spectrograms(
    spectrograms,
    file_paths,
    min_max_values,
    num_spectrograms=NUM_SPECTROGRAMS,
    *,
    files=None,
    seed=SEED,
):
    """Choose spectrograms at random, without replacement, or by name.

    Args:
        files: keys to take instead, in this order.
    Returns:
        (list of spectrograms, list of {"min", "max"}, list of keys).
    Raises:
        UserError: a key is unknown or has no min-max values.
    """
    file_paths = list(file_paths)
    if files:
        indices = [file_paths.index(find_key(name, file_paths)) for name in files]
    else:
        rng = np.random.default_rng(seed)
        count = min(num_spectrograms, len(file_paths))
        indices = rng.choice(len(file_paths), count, replace=False)
    keys = [file_paths[index] for index in indices]
    sampled_min_max_values = dataset.select_min_max_values(min_max_values, keys)
    return [spectrograms[index] for index in indices], sampled_min_max_values, keys


def find_key(name, keys):
    """The key of that name, with or without `.npy`; a UserError lists similar ones."""
    for key in (name, f"{name}.npy"):
        if key in keys:
            return key
    raise UserError(f"no spectrogram is called {name!r}, but: {list_similar(name, keys)}")


def save_signals(signals, save_dir, names, sample_rate=SAMPLE_RATE):
    """Write signals, (n_samples,) or (2, n_samples) in [-1, 1], as 16-bit WAV files.

    Returns:
        their paths.
    """
    import soundfile

    paths = [Path(save_dir) / f"{name}.wav" for name in names]
    for signal, path in zip(signals, paths, strict=True):
        buffer = io.BytesIO()
        soundfile.write(buffer, signal.T, sample_rate, subtype="PCM_16", format="WAV")
        write_atomically(path, buffer.getvalue())
    return paths


def save_item(item, save_dirs, sample_rate):
    """Write an Item's sounds, scaled down together if one would clip.

    Args:
        save_dirs: {kind: folder}.
    Returns:
        (the Item with that factor among its figures, {kind: path}).
    """
    peak = max(np.abs(signal).max() for signal in item.sounds.values())
    if peak > 1:
        factor = HEADROOM / peak
        sounds = {kind: factor * signal for kind, signal in item.sounds.items()}
        figures = {**item.figures, "scaled to avoid clipping by": float(factor)}
        item = item._replace(sounds=sounds, figures=figures)
    paths = {}
    for kind, signal in item.sounds.items():
        (paths[kind],) = save_signals([signal], save_dirs[kind], [item.name], sample_rate)
    return item, paths


def make_pairs(sound_generator, sources, num_spectrograms, *, files, seed):
    """Yield an Item of each chosen piece: recorded, its spectrogram inverted, reconstructed."""
    spectrograms, min_max_values, keys = select_spectrograms(
        *load_spectrograms(sources), num_spectrograms, files=files, seed=seed
    )
    for start in range(0, len(keys), BATCH_SIZE):
        batch = slice(start, start + BATCH_SIZE)
        yield from compare_pieces(
            sound_generator, sources, spectrograms[batch], min_max_values[batch], keys[batch]
        )


def interpolate(sound_generator, sources, files, *, steps):
    """Yield the morph between two pieces as `steps` pieces, and as one continuous sound."""
    chosen = select_spectrograms(*load_spectrograms(sources), files=files)
    yield from morph(sound_generator, sources, *chosen, steps=steps)


def load_spectrograms(sources):
    """(spectrograms, keys, min-max values) of features that the model fits."""
    check_settings(sources)
    min_max_values = dataset.load_min_max_values(sources.min_max_values_path)
    return *load_data(sources.spectrograms_path), min_max_values


def check_settings(sources):
    """Raise a UserError if the model was trained on features of other settings."""
    settings = Settings.load(sources.model / "settings.json")
    if Settings.load(sources.spectrograms_path / "settings.json") != settings:
        raise UserError(
            f"{sources.model} was trained on features of other settings than "
            f"{sources.spectrograms_path}: run train.py again"
        )


MODES = {  # {flag: (its value to Items, further flags that it takes)}
    "audio_files": (reconstruct_files, ()),
    "components": (tour_components, ()),
    "interpolate": (interpolate, ("steps",)),
    "sample": (make_samples, ("genre", "temperature", "seed")),
    "compose": (compose, ("genre", "temperature", "seed")),
    "num_spectrograms": (make_pairs, ("files", "seed")),  # if no other flag is given
}


def make_items(sound_generator, sources, flags):
    """Yield the Items of every mode that the flags ask for.

    Args:
        flags: {name: value}.
    """
    modes = [name for name in MODES if flags[name] and name != "num_spectrograms"]
    for name in modes or ["num_spectrograms"]:
        make, names = MODES[name]
        yield from make(sound_generator, sources, flags[name], **{n: flags[n] for n in names})


def make_evaluator(sound_generator, sources):
    """The Evaluator of new pieces, or None if the features are missing or not the model's."""
    from generation.evaluation import Evaluator

    try:
        check_settings(sources)
        return Evaluator(
            sound_generator,
            load_training_pieces(sources.model),
            sources.spectrograms_path,
            dataset.load_min_max_values(sources.min_max_values_path),
            load_held_out_tracks(sources.model),
        )
    except (OSError, UserError) as error:
        message = f"new pieces are not compared with training pieces: {error}"
        print(make_printable(message), file=sys.stderr)
        return None


def load_held_out_tracks(model):
    """The audio paths that a model was not trained on; None if it has no record of them."""
    path = model / "split.json"
    if not path.exists():
        return None
    parts = load_split(path)
    return parts["valid"] | parts["test"]


def print_item(item, paths):
    """Say in one line what was made, and the figures that tell how good it is."""
    figures = ", ".join(
        f"{name} {item.figures[name]:.4g}" for name in PRINTED_FIGURES if name in item.figures
    )
    sounds = ", ".join(map(str, paths.values()))
    print(make_printable(f"{item.title}: {figures}{': ' if figures else ''}{sounds}"), flush=True)


def get_parser():
    parser = make_parser(__doc__)
    add = parser.add_argument
    help_text = "folder that preprocess.py wrote; None: that of SPECTROGRAMS_PATH"
    add("--saved_data", type=Path, help=help_text)
    add("--model", type=Path, default=MODEL, help="folder that train.py wrote")
    add("--samples", type=Path, help="folder to write; None: SAMPLES and the SAVE_DIRs")
    count = {"type": number(int, 1)}
    add("--num_spectrograms", default=NUM_SPECTROGRAMS, help="pieces to reconstruct", **count)
    add("--files", nargs="+", metavar="KEY", help="these pieces instead of a random choice")
    add("--sample", metavar="N", help="make this many new pieces", **count)
    seconds = number(float, 0.01)
    add("--compose", type=seconds, metavar="SECONDS", help="make one long new piece")
    help_text = "of new pieces: a top folder of the audio; None: any"
    add("--genre", help=help_text)
    help_text = "how far new pieces stray from the typical; 0: not at all"
    add("--temperature", type=number(float, 0), default=TEMPERATURE, help=help_text)
    help_text = "morph one piece into another"
    add("--interpolate", nargs=2, metavar=("KEY_A", "KEY_B"), help=help_text)
    add("--steps", type=number(int, 2), default=STEPS, help="pieces of the morph")
    help_text = "songs to send through the autoencoder"
    add("--audio_files", nargs="+", metavar="FILE", help=help_text)
    help_text = f"tour this many main directions of what was learned; without N: {COMPONENTS}"
    add("--components", nargs="?", const=COMPONENTS, metavar="N", help=help_text, **count)
    add("--seed", type=number(int, 0, 2**32 - 1), default=SEED, help="of all chance")
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    sources = Sources(options.model, Path(SPECTROGRAMS_PATH), Path(MIN_MAX_VALUES_PATH))
    if options.saved_data:
        sources = Sources(
            options.model,
            options.saved_data / dataset.SPECTROGRAMS_SAVE_DIR,
            dataset.get_min_max_path(options.saved_data),
        )
    save_dirs = {
        "recorded": SAVE_DIR_RECORDED,
        "original": SAVE_DIR_ORIGINAL,
        "generated": SAVE_DIR_GENERATED,
        "new": SAVE_DIR_NEW,
    }
    if options.samples:
        save_dirs = {kind: options.samples / kind for kind in save_dirs}
    from autoencoder import Autoencoder
    from generation.page import Page

    autoencoder = Autoencoder.load(options.model)
    settings = Settings.load(options.model / "settings.json")
    sound_generator = settings.make_sound_generator(autoencoder, options.seed)

    evaluator, summary = None, {}
    page = Page(options.samples or Path(SAMPLES), settings)
    for item in make_items(sound_generator, sources, vars(options)):
        if item.latents is not None:  # a new piece
            evaluator = evaluator or make_evaluator(sound_generator, sources)
            item = evaluator.compare(item) if evaluator else item
        item, paths = save_item(item, save_dirs, settings.sample_rate)
        page.add(item, paths)
        print_item(item, paths)
    if evaluator:
        for name, distance in evaluator.measure_sets().items():
            summary[f"Frechet distance from held-out pieces, {name}, dB"] = distance
            print(f"Frechet distance from held-out pieces, {name}: {distance:.2f} dB")
    page.write(summary)
    print(f"{len(page.entries)} items in {page.folder}; open {page.folder / 'index.html'}")


if __name__ == "__main__":
    run_script(main)
