"""Make sound with a trained autoencoder: pairs to compare, and new music of any length.

In:  model/ as train.py wrote it and, but for new music, saved_data/ as preprocess.py wrote it.
Out: samples/original/*.wav and samples/generated/*.wav, same names, named after their sources;
     samples/new/*.wav; samples/index.html to hear, see and compare it all, and what earlier runs
     made there; samples/metrics.csv.

    python generate.py --num_spectrograms 5
    python generate.py --compose 60 --temperature 0.8
"""

import argparse
import io
import itertools
import struct
import sys
from pathlib import Path

import numpy as np

from generation.modes import (
    MAX_SECONDS,
    Manner,
    Recordings,
    Sources,
    compare_pieces,
    compose,
    continue_recording,
    explore,
    fill_gap,
    find_name,
    interpolate,
    load_song,
    make_loop,
    make_samples,
    parse_seconds,
    reconstruct_files,
    tour_components,
)
from preprocess import SAMPLE_RATE
from soundgenerator import SoundGenerator
from support import dataset
from support.command_line import folder_path, make_parser, number, run_script, show_progress
from support.dataset import load_split
from support.detail import Detail
from support.errors import UserError
from support.files import lock, make_printable, remove_temporaries, write_atomically
from support.memory import return_freed_memory
from support.prior import TEMPERATURE, list_similar
from support.settings import Settings
from support.tracks import TrainingTracks

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

PRODUCTS = ("items.json",)  # in samples that were copied without hidden files
WRITTEN_SAMPLES = 1 << 20  # scaled and written together
HEADROOM = 0.99  # peak of a sound that would have clipped
SAME_PEAK = 0.01  # dB
BATCH_SIZE = 8  # pieces reconstructed at a time
PRINTED_FIGURES = ("image error", "spectral convergence of the generated, dB", "mel distance, dB")


def load_data(spectrograms_path):
    """All spectrograms below a folder, read when they are used, and their keys.

    Returns:
        (sequence of float32 (n_bins, n_frames, n_channels), list of keys).
    """
    file_paths = dataset.list_keys(spectrograms_path)
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
    paths = {}
    for kind, signal in item.sounds.items():
        names = [item.name]
        (paths[kind],) = save_signals(
            *([signal], save_dirs[kind], names, sample_rate, factor, item.is_loop)
        )
    return item, paths


def make_pairs(sound_generator, sources, num_spectrograms, *, files, seed):
    """Yield an Item of each chosen piece: recorded, its spectrogram inverted, reconstructed."""
    count = num_spectrograms or NUM_SPECTROGRAMS
    spectrograms, min_max_values, keys = select_spectrograms(
        *load_spectrograms(sources), count, files=files, seed=seed
    )
    recordings = Recordings(sources.spectrograms_path)
    batches = [slice(start, start + BATCH_SIZE) for start in range(0, len(keys), BATCH_SIZE)]
    pieces = itertools.chain.from_iterable(
        compare_pieces(
            sound_generator, recordings, spectrograms[batch], min_max_values[batch], keys[batch]
        )
        for batch in batches
    )
    yield from show_progress(pieces, len(keys), "pieces")


def interpolate_pieces(sound_generator, sources, request, *, manner):
    """Yield the way from one piece, or the end of an audio file, to the beginning of another one.

    Args:
        request: (two keys or audio files, seconds).
    """
    *files, duration = request
    sounds = []
    for name in files:
        if Path(name).is_file():
            sounds.append(load_song(sound_generator, name))
        else:
            found = select_spectrograms(*load_spectrograms(sources), files=[name])
            sounds += sound_generator.convert_spectrograms_to_audio(*found[:2])
    duration = parse_seconds("--interpolate", duration, 0.01)
    yield from interpolate(sound_generator, sources, sounds, files, duration, manner=manner)


def load_spectrograms(sources):
    """(spectrograms, keys, min-max values) of features that the model fits."""
    check_settings(sources)
    spectrograms, keys = load_data(sources.spectrograms_path)
    return spectrograms, keys, dataset.load_min_max_values(sources.min_max_values_path, keys)


def check_settings(sources):
    """Raise a UserError if the model was trained on features of other settings."""
    if Settings.load(sources.spectrograms_path / "settings.json") != sources.settings:
        raise UserError(
            f"{sources.model} was trained on features of other settings than "
            f"{sources.spectrograms_path}: run train.py again"
        )


NEW = ("manner",)
MODES = {  # {flag: (its value to Items, what else that takes)}, in this order
    "audio_files": (reconstruct_files, ()),
    "components": (tour_components, NEW),
    "explore": (explore, NEW),
    "interpolate": (interpolate_pieces, NEW),
    "sample": (make_samples, NEW),
    "compose": (compose, NEW),
    "loop": (make_loop, ("bpm", *NEW)),
    "continue": (continue_recording, ("num_spectrograms", *NEW)),
    "fill": (fill_gap, ("num_spectrograms", *NEW)),
    "num_spectrograms": (make_pairs, ("files", "seed")),  # or if files, or no mode, are given
}
DEFAULTS = {  # of flags that are missing among the options unless they are given
    "num_spectrograms": None,
    "files": None,
    "bpm": None,
    "like": (),
    "toward": "",
    "temperature": TEMPERATURE,
}


def choose_modes(given):
    """The names of the modes that are asked for.

    Args:
        given: names of the flags that are given.
    Raises:
        UserError: one of them belongs to other modes.
    """
    modes = [name for name in MODES if name in given]
    if given & {"continue", "fill"} and "num_spectrograms" in modes:  # which is how many of them
        modes.remove("num_spectrograms")
    if not modes or ("files" in given and "num_spectrograms" not in given):
        modes.append("num_spectrograms")
    for flag in sorted(given & DEFAULTS.keys() - MODES.keys()):
        name = "manner" if flag in Manner._fields else flag
        takers = [mode for mode, (_, names) in MODES.items() if name in names]
        if not {*modes} & {*takers}:
            raise UserError(f"--{flag} does nothing without --{' or --'.join(takers)}")
    return modes


def make_items(sound_generator, sources, modes, flags):
    """Yield the Items of each mode; for a song that cannot be read, a UserError.

    Args:
        modes: names of MODES.
        flags: {name: value}.
    """
    manner = Manner(**{name: flags[name] for name in Manner._fields})
    flags = {**flags, "manner": manner}
    for name in modes:
        make, names = MODES[name]
        for item in make(sound_generator, sources, flags[name], **{n: flags[n] for n in names}):
            if not flags["detail"] and not isinstance(item, UserError):
                item = item._replace(name=f"{item.name}-no_detail")  # another sound, another file
            yield item


def check_audio(sources, tracks):
    """Raise a UserError if features of TrainingTracks are of other audio, of the same names."""
    keys = dataset.list_keys(sources.spectrograms_path)
    min_max_values, peaks = dataset.load_min_max_values(sources.min_max_values_path, keys), {}
    for key, entry in min_max_values.items():
        track = dataset.get_track(key)
        peaks[track] = max(entry["max"], peaks.get(track, -np.inf))
    if any(
        abs(peaks.get(track, peak) - peak) > SAME_PEAK
        for track, peak in zip(tracks.tracks.tolist(), tracks.peaks, strict=True)
    ):
        raise UserError(
            f"{sources.spectrograms_path} is of other audio than {sources.model} was trained on: "
            "name its own folder with --saved_data"
        )


def make_evaluator(sound_generator, sources):
    """The Evaluator of new pieces; without the model's features it knows none that was held out.

    None for a model without its tracks, as the pretrained one is.
    """
    from generation.evaluation import Evaluator

    try:
        tracks, held_out = TrainingTracks.load(sources.model), []
    except FileNotFoundError:
        say(f"{sources.model} does not hold its training tracks: nothing tells copies", sys.stderr)
        return None
    try:
        check_settings(sources)
        check_audio(sources, tracks)
        held_out = load_held_out(sources)
    except (OSError, UserError) as error:
        say(f"new pieces are not compared with held-out ones: {error}", sys.stderr)
    say(f"comparing with {len(tracks.tracks)} training tracks and {len(held_out)} held-out pieces")
    return Evaluator(sound_generator, tracks, held_out)


def load_held_out(sources):
    """At most MAX_COMPARED spectrograms that were not trained on."""
    from generation.evaluation import choose_evenly

    parts = load_split(sources.model / "split.json")
    tracks = parts["valid"] | parts["test"]
    keys = [
        key
        for key in dataset.list_keys(sources.spectrograms_path)
        if dataset.get_track(key) in tracks
    ]
    chosen = choose_evenly(len(keys)) if keys else ()
    return [dataset.load_spectrogram(sources.spectrograms_path, keys[index]) for index in chosen]


def save_items(items, page, save_dirs, sound_generator, sources):
    """Write Items, say what was made, and put it on a page; new pieces are judged before.

    Args:
        items: as make_items() yields them.
        save_dirs: {kind: folder}.
    Returns:
        how many songs could not be read.
    """
    evaluator, is_sought, n_skipped, summary = None, False, 0, {}
    for item in items:
        if isinstance(item, UserError):
            n_skipped += 1
            say(f"skipped {item}", sys.stderr)
            continue
        if item.is_new and not is_sought:
            evaluator, is_sought = make_evaluator(sound_generator, sources), True
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
    return n_skipped


def describe_item(item, paths):
    """One line: what was made, and the figures that tell how good it is."""
    figures = ", ".join(
        f"{name} {item.figures[name]:.4g}" for name in PRINTED_FIGURES if name in item.figures
    )
    sounds = ", ".join(map(str, paths.values()))
    return f"{item.title}: {figures}{': ' if figures else ''}{sounds}"


def say(text, file=None):
    """Print a line above the progress bars, on stdout if no file is given."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        print(make_printable(text), file=file or sys.stdout, flush=True)


def get_parser():
    parser = make_parser(__doc__)
    parser.argument_default = argparse.SUPPRESS  # main() sees which flags are given
    add = parser.add_argument
    help_text = "folder that preprocess.py wrote; None: that of SPECTROGRAMS_PATH"
    add("--saved_data", type=folder_path, default=None, help=help_text)
    add("--model", type=folder_path, default=MODEL, help="folder that train.py wrote")
    help_text = "folder to write; None: SAMPLES and the SAVE_DIRs"
    add("--samples", type=folder_path, default=None, help=help_text)
    count = {"type": number(int, 1)}
    pairs = parser.add_mutually_exclusive_group()
    help_text = (
        f"pieces to reconstruct, chosen at random (default: {NUM_SPECTROGRAMS}); with --continue "
        "or --fill, in how many ways"
    )
    pairs.add_argument("--num_spectrograms", help=help_text, **count)
    pairs.add_argument("--files", nargs="+", metavar="KEY", help="pieces to reconstruct")
    add("--sample", metavar="N", help="make this many new pieces", **count)
    seconds = number(float, 0.01, MAX_SECONDS)
    add("--compose", type=seconds, metavar="SECONDS", help="make one long new piece")
    help_text = "make a piece that can be repeated without a seam"
    add("--loop", type=seconds, metavar="SECONDS", help=help_text)
    help_text = "of a loop, which becomes a whole number of beats long"
    add("--bpm", type=number(float, 1), help=help_text)
    help_text = "a recording, and how it may go on or, if SECONDS are negative, have begun"
    add("--continue", nargs=2, metavar=("FILE", "SECONDS"), help=help_text)
    help_text = "a recording that is new between two times, in seconds"
    add("--fill", nargs=3, metavar=("FILE", "FROM", "TO"), help=help_text)
    help_text = "go from one piece or audio file to another one in this time"
    ends = ("KEY_A", "KEY_B", "SECONDS")
    add("--interpolate", nargs=3, metavar=ends, help=help_text)
    help_text = (
        "new music in the style of a genre, a training track or an audio file, or of several"
    )
    add("--like", nargs="+", metavar="NAME", help=help_text)
    help_text = "another style, that new music changes to"
    add("--toward", metavar="NAME", help=help_text)
    help_text = f"of new music; lower is more typical (default: {TEMPERATURE})"
    add("--temperature", type=number(float, 0), help=help_text)
    help_text = "songs, and folders of songs, to send through the autoencoder"
    add("--audio_files", nargs="+", metavar="FILE", help=help_text)
    help_text = f"tour this many main directions of what was learned; without N: {COMPONENTS}"
    add("--components", nargs="?", const=COMPONENTS, metavar="N", help=help_text, **count)
    help_text = "a piece at these standard deviations along the main directions"
    add("--explore", nargs="+", type=number(float, -10, 10), metavar="X", help=help_text)
    alone = parser.add_mutually_exclusive_group()
    help_text = "play with the model in a browser; what is kept goes to the samples"
    alone.add_argument("--app", action="store_true", default=False, help=help_text)
    help_text = "write the networks as TFLite files, in place of sound; None: do not"
    export = {"type": folder_path, "metavar": "FOLDER", "default": None}
    alone.add_argument("--export", help=help_text, **export)
    help_text = "draw what sound loses in the autoencoder, if the model has learned to"
    yes_or_no = argparse.BooleanOptionalAction
    add("--detail", action=yes_or_no, default=True, help=help_text)
    add("--seed", type=number(int, 0, 2**32 - 1), default=SEED, help="of all chance")
    return parser


def read_options(parser, argv=None):
    """(options, the names of their modes), or what parser.error does if they do not go together."""
    options = parser.parse_args(argv)
    given = {*vars(options)} & (MODES.keys() | DEFAULTS.keys())
    if options.app and given:
        parser.error(f"--app does nothing with --{min(given)}: it asks for it on its page")
    if options.export and given:
        parser.error(f"--export makes no sound: leave out --{min(given)}")
    try:
        return options, choose_modes(given)
    except UserError as error:
        parser.error(str(error))


def choose_model(folder):
    """The folder, or the pretrained model's in place of a MODEL that is not there yet."""
    if folder != Path(MODEL) or folder.exists() or not (PRETRAINED / "parameters.json").exists():
        return folder
    print(
        f"there is no {MODEL} yet: this is the pretrained one, see {PRETRAINED / 'MODEL_CARD.md'}"
    )
    return PRETRAINED


def find_sources(options):
    """The Sources of some options."""
    if not options.saved_data:
        return Sources(options.model, Path(SPECTROGRAMS_PATH), Path(MIN_MAX_VALUES_PATH))
    spectrograms_path = options.saved_data / dataset.SPECTROGRAMS_SAVE_DIR
    return Sources(options.model, spectrograms_path, dataset.get_min_max_path(options.saved_data))


def main(argv=None):
    options, modes = read_options(get_parser(), argv)
    options.model = choose_model(options.model)
    if options.export:
        from generation.export import export_networks

        for line in export_networks(options.model, options.export):
            print(line, flush=True)
        return
    sources, folder = find_sources(options), options.samples or Path(SAMPLES)
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

    return_freed_memory()
    autoencoder = Autoencoder.load(options.model)
    settings = sources.settings
    detail = Detail.load(options.model) if options.detail or options.app else None

    def make_generator(options):
        lost = detail if options.detail else None
        return SoundGenerator.of(settings, autoencoder, options.seed, lost)

    def make(options, modes):
        """The Items that some options ask for."""
        return make_items(make_generator(options), sources, modes, {**DEFAULTS, **vars(options)})

    def save(items):
        """Save Items to the folder; (the Page, how many songs could not be read)."""
        with lock(folder, *PRODUCTS):
            remove_temporaries(*save_dirs.values(), *folder.glob("pictures/*"))
            page = Page(folder, settings)
            return page, save_items(items, page, save_dirs, make_generator(options), sources)

    if options.app:
        run_app(make, save, options, sources, folder)
        return
    page, n_skipped = save(make(options, modes))
    index = make_printable(folder / "index.html")
    print(f"open {index}: {len(page.entries)} items, {len(page.made)} of this run")
    if n_skipped:
        raise UserError(f"{n_skipped} songs could not be read")


def run_app(make, save, options, sources, folder):
    """Play with a model in the browser, until Ctrl-C.

    Args:
        make, save, sources: see main().
        folder: of samples, for what is kept.
    """
    from generation.app import build_app, format_command, launch

    parser = get_parser()

    def refuse(message):
        raise UserError(message)

    parser.error = refuse  # in place of ending the app

    def keep(item, flags, uploads):
        # Gradio's folder of an upload is named after what it holds.
        names = {path: Path(Path(path).parent.name[:8], Path(path).name) for path in uploads}
        copies = {path: str(folder / "uploads" / name) for path, name in names.items()}
        command = format_command([copies.get(flag, flag) for flag in flags])
        page, _ = save([item._replace(figures={**item.figures, "command": command})])
        for path, copy in copies.items():
            write_atomically(copy, Path(path).read_bytes())
        return f"{folder / 'index.html'} has {len(page.entries)} items"

    flags = ["--model", str(options.model)]
    flags += ["--saved_data", str(options.saved_data)] if options.saved_data else []
    flags += ["--samples", str(folder)] if options.samples else []
    how = {"seed": options.seed, "detail": options.detail}
    app = build_app(lambda argv: make(*read_options(parser, argv)), keep, sources, flags, **how)
    launch(app)


if __name__ == "__main__":
    run_script(main)
