"""Make sound with a trained autoencoder: pairs to compare, and new music of any length.

In:  model/ as train.py wrote it and, for pairs, saved_data/ as preprocess.py wrote it.
Out: samples/recorded/*.wav, samples/original/*.wav (inverted) and samples/generated/*.wav, same
     names, named after their sources; samples/new/*.wav; samples/index.html to hear, see and
     compare it all, and what earlier runs made there; samples/metrics.csv.

    python generate.py
    python generate.py compose 60 --temperature 0.8
"""

import argparse
import io
import struct
import sys
from pathlib import Path

import numpy as np

from generation.modes import Composer, compare_pieces, find_name, make_file_names, reconstruct_songs
from generation.sources import Recordings, Sources, load_song, say
from preprocess import SAMPLE_RATE
from support import dataset
from support.command_line import folder_path, make_parser, number, run_script, show_progress
from support.errors import UserError
from support.files import lock, make_printable, remove_temporaries, write_atomically
from support.prior import TEMPERATURE, list_similar

SPECTROGRAMS_PATH = "saved_data/spectrograms"
MIN_MAX_VALUES_PATH = "saved_data/min_max_values/min_max_values.pkl"
MODEL = "model"
PRETRAINED = Path(__file__).resolve().parent / "pretrained"
SAMPLES = "samples"
SAVE_DIR_RECORDED = f"{SAMPLES}/recorded"
SAVE_DIR_ORIGINAL = f"{SAMPLES}/original"
SAVE_DIR_GENERATED = f"{SAMPLES}/generated"
SAVE_DIR_NEW = f"{SAMPLES}/new"
NUM_SPECTROGRAMS = 5
COMPONENTS = 3  # directions of a tour
SEED = 0

DEFAULTS = {  # of the flags of every command, and of those that not every command has
    "saved_data": None,
    "model": Path(MODEL),
    "samples": None,
    "detail": True,
    "seed": SEED,
    "command": "pairs",
    "count": NUM_SPECTROGRAMS,
    "files": None,
    "bpm": None,
    "like": (),
    "toward": "",
}

MAX_SECONDS = 1e6
PRODUCTS = ("items.json",)  # marks samples as ours that were copied without the hidden lock
WRITTEN_SAMPLES = 1 << 20  # scaled and written together
HEADROOM = 0.99  # peak of a sound that would have clipped
PRINTED_FIGURES = ("image error", "spectral convergence of the generated, dB", "mel distance, dB")


def load_data(spectrograms_path, *, keys=None):
    """Spectrograms below a folder, read when they are used, and their keys.

    Args:
        keys: only these, in their order; None: all.
    Returns:
        (sequence of float32 (n_bins, n_frames, n_channels), list of keys).
    """
    file_paths = keys or dataset.list_keys(spectrograms_path)
    return dataset.Pieces(spectrograms_path, None, file_paths), file_paths


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
    for text in (name, f"{name}.npy"):
        if key := find_name(text, keys):
            return key
    raise UserError(f"no spectrogram is called {name!r}, but: {list_similar(name, keys)}")


def save_signals(signals, save_dir, names, sample_rate=SAMPLE_RATE, factor=1.0, is_loop=False):
    """Write signals, (n_samples,) or (2, n_samples) in [-1, 1], as 16-bit WAV files.

    Args:
        factor: on their samples.
        is_loop: whether samplers are told to repeat them.
    Returns:
        their paths.
    """
    import soundfile

    paths = [Path(save_dir) / f"{name}.wav" for name in names]
    for signal, path in zip(signals, paths, strict=True):
        buffer, n_channels = io.BytesIO(), np.atleast_2d(signal).shape[0]
        options = {"channels": n_channels, "subtype": "PCM_16", "format": "WAV"}
        with soundfile.SoundFile(buffer, "w", sample_rate, **options) as file:
            for start in range(0, signal.shape[-1], WRITTEN_SAMPLES):  # a copy of an hour is large
                file.write(factor * signal[..., start : start + WRITTEN_SAMPLES].T)
        if is_loop:
            add_loop(buffer, sample_rate, signal.shape[-1])
        write_atomically(path, buffer.getbuffer())
    return paths


def add_loop(buffer, sample_rate, n_samples):
    """Add the chunk that has samplers repeat a WAV file as a whole, for ever."""
    period, middle_c, forward = round(1e9 / sample_rate), 60, 0  # nanoseconds, MIDI's note
    header = 0, 0, period, middle_c, 0, 0, 0, 1, 0
    loop = 0, forward, 0, n_samples - 1, 0, 0
    chunk = struct.pack("<4sI15I", b"smpl", 60, *header, *loop)
    n_bytes = buffer.seek(0, io.SEEK_END) + len(chunk)
    buffer.write(chunk)
    buffer.seek(4)
    buffer.write(struct.pack("<I", n_bytes - 8))


def save_item(item, save_dirs, sample_rate):
    """Write an Item's sounds, scaled down together if one would clip.

    Args:
        save_dirs: {kind: folder}.
    Returns:
        (the Item with that factor among its figures, {kind: path}).
    """
    peak, factor = max(max(s.max(), -s.min()) for s in item.sounds.values()), 1.0
    if peak > 1:
        factor = float(HEADROOM / peak)
        figures = {**item.figures, "scaled to avoid clipping by": factor}
        item = item._replace(figures=figures)
    how = [item.name], sample_rate, factor, item.is_loop
    paths = {
        kind: save_signals([signal], save_dirs[kind], *how)[0]
        for kind, signal in item.sounds.items()
    }
    return item, paths


def make_items(sound_generator, sources, options):
    """Yield the Items that a command asks for; for a song that cannot be read, a UserError."""
    if options.command == "pairs":
        how = {"files": options.files, "seed": options.seed}
        chosen = select_spectrograms(*load_spectrograms(sources), options.count, **how)
        pieces = compare_pieces(sound_generator, Recordings(sources.features), *chosen)
        items = show_progress(pieces, len(chosen[0]), "pieces")
    elif options.command == "songs":
        items = reconstruct_songs(sound_generator, options.files)
    else:
        items = make_music(sound_generator, sources, options)
    model = sources.model.resolve().name
    marks = [model] * (model != MODEL) + ["no_detail"] * (not options.detail)
    for item in items:
        if marks and not isinstance(item, UserError):  # another sound is another file
            item = item._replace(name=make_file_names(["-".join([item.name, *marks])])[0])
        yield item


def make_music(sound_generator, sources, options):
    """Items of new music; see Composer."""
    how = options.like, options.toward, options.temperature, options.seed
    composer = Composer(sound_generator, sources.prior, *how)
    match options.command:
        case "sample":
            return composer.sample(options.count)
        case "compose":
            return composer.compose(options.seconds)
        case "loop":
            return composer.loop(options.seconds, options.bpm)
        case "continue":
            return composer.extend(options.file, options.seconds, options.count)
        case "fill":
            return composer.fill(options.file, options.begin, options.end, options.count)
        case "interpolate":
            names = options.first, options.last
            sounds = [load_sound(sound_generator, sources, name) for name in names]
            return composer.interpolate(sounds, names, options.seconds)
        case "tour":
            return composer.tour(options.count)
        case "explore":
            return composer.explore(options.offsets)


def load_sound(sound_generator, sources, name):
    """The signal of an audio file, or of the piece with a key."""
    if Path(name).is_file():
        return load_song(sound_generator, name)
    spectrograms, min_max_values, _ = select_spectrograms(*load_spectrograms(sources), files=[name])
    return sound_generator.convert_spectrograms_to_audio(spectrograms, min_max_values)[0]


def load_spectrograms(sources):
    """(spectrograms, keys, min-max values) of features that the model fits."""
    sources.check_settings()
    features = sources.features
    return *load_data(features.path, keys=features.keys), features.min_max_values


def save_items(items, sound_generator, sources, samples=None):
    """Write Items, say what was made, and put it on a page; new pieces are judged before.

    Args:
        items: as make_items() yields them.
        samples: folder to write; None: that of the constants.
    Returns:
        (the Page, how many songs could not be read).
    """
    from generation.evaluation import make_evaluator
    from generation.page import Page

    folder, save_dirs = find_save_dirs(samples)
    evaluator, n_skipped, summary = None, 0, {}
    with lock(folder, *PRODUCTS):
        remove_temporaries(*save_dirs.values(), *folder.glob("pictures/*"))
        page = Page(folder, sources.settings)
        for item in items:
            if isinstance(item, UserError):
                n_skipped += 1
                say(f"skipped {item}", sys.stderr)
                continue
            if item.is_new and evaluator is None:
                evaluator = make_evaluator(sound_generator, sources, item.figures) or False
            if item.is_new and evaluator:
                item = evaluator.compare(item)
            item, paths = save_item(item, save_dirs, sound_generator.sample_rate)
            page.add(item, paths)
            say(describe_item(item, paths))
        if evaluator:
            summary = evaluator.measure_sets()
            for name, value in summary.items():
                say(f"{name}: {value:.2f}")
        page.finish(summary)
    return page, n_skipped


def find_save_dirs(samples):
    """(the folder to write, {kind: that of sounds}); see save_items()."""
    kinds = "recorded", "original", "generated", "new"
    if samples:
        return samples, {kind: samples / kind for kind in kinds}
    save_dirs = SAVE_DIR_RECORDED, SAVE_DIR_ORIGINAL, SAVE_DIR_GENERATED, SAVE_DIR_NEW
    return Path(SAMPLES), dict(zip(kinds, save_dirs, strict=True))


def describe_item(item, paths):
    """One line: what was made, and the figures that tell how good it is."""
    figures = ", ".join(
        f"{name} {item.figures[name]:.4g}" for name in PRINTED_FIGURES if name in item.figures
    )
    sounds = ", ".join(map(str, paths.values()))
    return f"{item.title}: {figures}{': ' if figures else ''}{sounds}"


def get_parser():
    """The parser, which leaves out what is not given: see DEFAULTS."""
    parser = make_parser(__doc__)
    add_shared(parser)
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", description="COMMAND --help tells more"
    )

    def add_command(name, text):
        how = {"formatter_class": parser.formatter_class, "allow_abbrev": False}
        command = commands.add_parser(name, help=text, description=text, **how)
        add_shared(command)
        return command

    text = "pieces: recorded, inverted, reconstructed; this without a COMMAND, too"
    pairs = add_command("pairs", text).add_mutually_exclusive_group()
    help_text = "how many, chosen at random"
    pairs.add_argument("--count", type=number(int, 1), default=NUM_SPECTROGRAMS, help=help_text)
    pairs.add_argument("--files", nargs="+", metavar="KEY", help="which, by their keys")
    text = "songs, and folders of songs, through the autoencoder"
    add_command("songs", text).add_argument("files", nargs="+", metavar="FILE")
    add_new_music(add_command)
    text = "the networks as TFLite files, for where there is no Keras"
    add_command("export", text).add_argument("folder", type=folder_path, help="to write")
    add_command("app", "train, and play with the model, in a browser")
    return parser


def add_shared(parser):
    """Add the flags that go before a command, and behind it."""
    parser.argument_default = argparse.SUPPRESS
    add = parser.add_argument_group("of every command").add_argument
    help_text = f"folder that preprocess.py wrote (default: {Path(SPECTROGRAMS_PATH).parent})"
    add("--saved_data", type=folder_path, help=help_text)
    add("--model", type=folder_path, help=f"folder that train.py wrote (default: {MODEL})")
    help_text = f"folder to write (default: {SAMPLES})"
    add("--samples", type=folder_path, help=help_text)
    help_text = "add the detail that the autoencoder loses, if the model can (default: yes)"
    add("--detail", action=argparse.BooleanOptionalAction, help=help_text)
    help_text = f"of everything random (default: {SEED})"
    add("--seed", type=number(int, 0, 2**32 - 1), help=help_text)


def add_new_music(add_command):
    """Add the commands that make new music."""
    count = {"type": number(int, 1)}
    ways = {**count, "default": 1, "help": "in how many ways, each with a seed of its own"}
    length = {"type": number(float, 0.01, MAX_SECONDS), "metavar": "SECONDS"}
    moment = {"type": number(float, 0), "help": "in seconds"}

    def add_music(name, text, has_style=True):
        add = add_command(name, text).add_argument
        if has_style:
            help_text = "in the style of a genre, training track or audio file, or of several"
            add("--like", nargs="+", metavar="NAME", help=help_text)
            add("--toward", metavar="NAME", help="another style, that it changes to")
        help_text = "lower is more typical"
        add("--temperature", type=number(float, 0), default=TEMPERATURE, help=help_text)
        return add

    add_music("sample", "new pieces")("count", metavar="N", **count)
    add_music("compose", "one long new piece")("seconds", **length)
    add = add_music("loop", "a new piece that can be repeated without a seam")
    add("seconds", **length)
    help_text = "beats per minute; it becomes a whole number of beats long"
    add("--bpm", type=number(float, 1), help=help_text)
    add = add_music("continue", "a recording, and how it may go on, or have begun")
    add("file", metavar="FILE")
    help_text = "that are new; if negative, before the recording"
    seconds = number(float, -MAX_SECONDS, MAX_SECONDS)
    add("seconds", type=seconds, metavar="SECONDS", help=help_text)
    add("--count", **ways)
    add = add_music("fill", "a recording that is new between two times")
    add("file", metavar="FILE")
    add("begin", metavar="FROM", **moment)
    add("end", metavar="TO", **moment)
    add("--count", **ways)
    add = add_music("interpolate", "the end of one sound, new music, and the beginning of another")
    add("first", metavar="A", help="audio file, or key of a piece")
    add("last", metavar="B", help="the same")
    add("seconds", help="from one to the other", **length)
    add = add_music("tour", "a tour of the main directions in which styles differ", False)
    add("count", nargs="?", default=COMPONENTS, metavar="N", help="of how many", **count)
    add = add_music("explore", "a piece at one place along these directions", False)
    help_text = "standard deviations along each of the first directions"
    add("offsets", nargs="+", type=number(float, -10, 10), metavar="X", help=help_text)


def read_options(argv=None):
    """All that a command line asks for, by name."""
    return get_parser().parse_args(argv, argparse.Namespace(**DEFAULTS))


def find_sources(options):
    """The Sources of some options; the pretrained model in place of a MODEL that is not there."""
    model = options.model
    if model == Path(MODEL) and not model.exists() and (PRETRAINED / "parameters.json").exists():
        model = PRETRAINED
        card = PRETRAINED / "MODEL_CARD.md"
        print(f"there is no {MODEL} yet: this is the pretrained one, see {card}")
    features = dataset.Features(Path(SPECTROGRAMS_PATH), Path(MIN_MAX_VALUES_PATH))
    if options.saved_data:
        features = dataset.Features.of(options.saved_data)
    return Sources(model, features)


def main(argv=None):
    options = read_options(argv)
    if options.command == "app":
        run_app(options)
        return
    sources = find_sources(options)
    if options.command == "export":
        from generation.export import export_networks

        for line in export_networks(sources.model, options.folder):
            print(line, flush=True)
        return
    sound_generator = sources.make_generator(options.seed, options.detail)
    items = make_items(sound_generator, sources, options)
    page, n_skipped = save_items(items, sound_generator, sources, options.samples)
    index = make_printable(page.folder / "index.html")
    print(f"open {index}: {len(page.entries)} items, {len(page.made)} of this run")
    if n_skipped:
        raise UserError(f"{n_skipped} songs could not be read")


def run_app(options):
    """Train models and play with them in the browser, until Ctrl-C."""
    from generation.app import build_app, format_command, launch

    folder = options.samples or Path(SAMPLES)

    def open_model(model, saved_data):
        sources = find_sources(argparse.Namespace(model=model, saved_data=saved_data))
        flags = ["--model", str(sources.model)]
        flags += ["--saved_data", str(saved_data)] if saved_data else []
        return sources, flags + (["--samples", str(folder)] if options.samples else [])

    def make(sources, flags):
        asked = read_options(flags)
        return make_items(sources.make_generator(asked.seed, asked.detail), sources, asked)

    def keep(sources, item, flags, uploads):
        # Gradio's folder of an upload is named after what it holds.
        names = {path: Path(Path(path).parent.name[:8], Path(path).name) for path in uploads}
        copies = {path: str(folder / "uploads" / name) for path, name in names.items()}
        command = format_command([copies.get(flag, flag) for flag in flags])
        item = item._replace(figures={**item.figures, "command": command})
        sound_generator = sources.make_generator(options.seed, options.detail)
        page, _ = save_items([item], sound_generator, sources, options.samples)
        for path, copy in copies.items():
            write_atomically(copy, Path(path).read_bytes())
        return f"{folder / 'index.html'} has {len(page.entries)} items"

    opened = options.model, options.saved_data
    folders = options.saved_data or Path(SPECTROGRAMS_PATH).parent, options.model
    how = {"seed": options.seed, "detail": options.detail}
    launch(build_app(open_model, make, keep, opened, folders, **how))


if __name__ == "__main__":
    run_script(main)
