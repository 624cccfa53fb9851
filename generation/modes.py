"""The modes of generate.py: each makes Items of plain values.

In:  a SoundGenerator, the Sources that it may read, and the values of flags.
Out: Items: sounds with names, titles and figures.

    for item in compose(sound_generator, sources, 60.0, manner=Manner(("jazz",))): ...
"""

import argparse
import dataclasses
import functools
import hashlib
import itertools
import os
import re
import sys
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from preprocess import Loader, check_length, make_pipeline
from soundgenerator import CONTEXT_S
from support import dataset
from support.audio import decode, find_audio, list_audio_files
from support.command_line import number, show_progress
from support.dataset import add_channel_axis
from support.errors import UserError
from support.files import make_printable, read_json
from support.prior import TEMPERATURE, Prior, list_similar
from support.settings import Settings
from support.spectrograms import to_amplitude, to_image

TOUR = (-2, -1, 0, 1, 2)  # standard deviations along a direction
LOOP_START_S = 4.5  # seconds, at most, that a loop begins with, and comes back to
MAX_SECONDS = 1e6
MAX_LABEL = 40  # characters
MAX_WAV_NAME_BYTES = 200  # file systems end at 255
SOME_RATE = 22050  # Hz, at which it is tried whether a file holds audio
SAME_IMAGE = 1e-3  # mean absolute difference, in [0, 1]: more than float16 rounds
PLAIN_NAME = re.compile(r"(?!any$)(?!.*-to-)[\w-]+")  # that no other names, joined, look like
RESERVED = '\\:*?"<>|'  # characters that some system does not allow in a name


class Item(NamedTuple):
    """Something to hear: its sounds by kind, and its figures."""

    name: str  # of its files
    title: str
    sounds: dict  # {kind: float32 signal}; a kind has a folder of its own
    figures: dict  # {name with unit: number or text}
    is_new: bool = False  # and is to be compared with training music
    is_loop: bool = False  # and is to be repeated
    origins: list = ()  # [training track, its second, similarity] that each second is nearest to


@dataclasses.dataclass
class Sources:
    """What generate.py may read from. What it has read of a model stays, if another replaces it."""

    model: Path  # folder
    spectrograms_path: Path
    min_max_values_path: Path

    @functools.cached_property
    def settings(self):
        """The Settings of the model's features."""
        return Settings.load(self.model / "settings.json", "run train.py --resume")

    @functools.cached_property
    def prior(self):
        """The model's Prior."""
        return Prior.load(self.model)


class Manner(NamedTuple):
    """What new music is to be like, as far as it is not left to what is known, or to chance."""

    like: tuple = ()  # genres, training tracks and audio files, whose styles are mixed
    toward: str = ""  # another one, that the style changes to
    temperature: float = TEMPERATURE
    seed: int = 0

    @property
    def label(self):
        """It as part of a file's name."""
        like, toward = [*map(shorten, self.like)], [shorten(self.toward)] if self.toward else []
        short = "-to-".join(["+".join(like) or "any", *toward])
        if len(short) > MAX_LABEL or not all(map(PLAIN_NAME.fullmatch, [*like, *toward])):
            short = re.sub(r"[^\w+-]+", "_", short)[-MAX_LABEL:]
            short = f"{short}-{hash_text(repr((self.like, self.toward)))}"
        return f"{short}-t{self.temperature:g}-seed{self.seed}"

    def describe(self):
        """It as an Item's figures."""
        figures = {"like": " and ".join(self.like) or "any", "toward": self.toward}
        figures |= {"temperature": self.temperature, "seed": self.seed}
        return {name: value for name, value in figures.items() if value != ""}


class Recordings:
    """The audio that features were made of, as far as it is still there and still the same.

    Args:
        spectrograms_path: the folder of features; source.json beside it names that of the audio.
    """

    def __init__(self, spectrograms_path):
        self._pipeline = make_pipeline(Settings.load(spectrograms_path / "settings.json"))
        self._folders = load_audio_folders(spectrograms_path.parent)

    def load(self, key, spectrogram):
        """What a feature was made of, or None if no such audio is there.

        Args:
            spectrogram: the feature, float32 (n_bins, n_frames, n_channels), in [0, 1].
        Returns:
            float32 (n_samples,) or (2, n_samples).
        """
        if not dataset.FEATURE_NAME.fullmatch(key):
            return None
        path = find_audio(self._folders, dataset.get_track(dataset.check_key(key)))
        if path is None:
            return None
        extractor, segment = self._pipeline.extractor, dataset.get_segment(key)
        try:
            signals = self._pipeline.load_extended(path)
            signal = next(itertools.islice(signals, segment, None), None)
        except (OSError, UserError):
            return None
        if signal is None:
            return None
        log_spectrogram = add_channel_axis(extractor.extract(signal, is_extended=True))
        image, _ = to_image(log_spectrogram, self._pipeline.normaliser)
        is_same = image.shape == spectrogram.shape and (
            np.abs(image - spectrogram).mean() < SAME_IMAGE
        )
        half_frame = extractor.frame_size // 2
        return signal[..., half_frame:-half_frame] if is_same else None


def load_audio_folders(saved_data):
    """The folders of audio that a source.json names, as name_folders() has them; none if it is
    missing or damaged."""
    try:
        source = read_json(saved_data / "source.json")["audio_files_dirs"]
        return {prefix: saved_data / name for prefix, name in source.items()}
    except (OSError, UserError, KeyError, TypeError, AttributeError):
        return {}


def compare_pieces(sound_generator, recordings, spectrograms, min_max_values, keys):
    """Yield the Item of each piece: recorded, its spectrogram inverted, and reconstructed.

    Args:
        recordings: the Recordings that the pieces may be of.
        spectrograms: float32 (n_bins, n_frames, n_channels), in [0, 1].
    """
    from generation.evaluation import measure_mel_distance, measure_spectral_convergence

    generator = sound_generator
    original_signals = generator.convert_spectrograms_to_audio(spectrograms, min_max_values)
    signals, latents = generator.generate(spectrograms, min_max_values)
    images, ranges = generator.fit_images(spectrograms, min_max_values)
    generated = generator.autoencoder.decode(latents)[:, :, : images.shape[2]]
    for index, (key, name) in enumerate(zip(keys, make_file_names(keys), strict=True)):
        sounds = {"original": original_signals[index], "generated": signals[index]}
        log_spectrograms = {
            "original": generator.restore_log_spectrogram(
                spectrograms[index], min_max_values[index]
            ),
            "generated": generator.restore_log_spectrogram(
                generator.add_detail(generated[index]), ranges[index]
            ),
        }
        figures = {"image error": float(np.square(generated[index] - images[index]).mean())}
        for kind, log_spectrogram in log_spectrograms.items():
            figures[f"spectral convergence of the {kind}, dB"] = measure_spectral_convergence(
                to_amplitude(log_spectrogram),
                sounds[kind],
                generator.frame_size,
                generator.hop_length,
            )
        figures["mel distance, dB"] = measure_mel_distance(
            *sounds.values(), sample_rate=generator.sample_rate
        )
        recorded = recordings.load(key, spectrograms[index])
        if recorded is not None:
            sounds = {"recorded": recorded, **sounds}
        yield Item(name, key, sounds, figures)


def make_samples(sound_generator, sources, count, *, manner):
    """Yield `count` new pieces."""
    tools, n_samples = (sound_generator, sources, manner), sound_generator.n_samples
    for index in show_progress(range(count), count, "new pieces"):
        name, title = f"{index:03d}", f"New piece {index + 1}"
        yield make_new(*tools, "sample", name, title, n_samples)._replace(is_new=True)


def compose(sound_generator, sources, duration, *, manner):
    """Yield one new piece of `duration` seconds."""
    tools = sound_generator, sources, manner
    n_samples = max(1, round(duration * sound_generator.sample_rate))
    text = f"{duration:g} s"
    item = make_new(*tools, "compose", text, f"A piece of {text}", n_samples)
    yield item._replace(is_new=True)


def make_loop(sound_generator, sources, duration, *, bpm, manner):
    """Yield a new piece that goes on without a seam where it is repeated.

    Args:
        duration: seconds; with bpm, of the nearest whole number of beats.
    """
    if bpm:
        duration = max(1, round(duration * bpm / 60)) * 60 / bpm
    n_samples = max(sound_generator.frame_size, round(duration * sound_generator.sample_rate))
    tools = sound_generator, sources, manner, "loop"
    place = min(n_samples // 2, round(LOOP_START_S * sound_generator.sample_rate))
    start = make_new(*tools, f"start of {duration:g} s", "", place).sounds["new"]
    # The way from its start to its start: half a frame of the second one is new, too.
    what = f"{duration:g} s", f"A loop of {duration:g} s"
    item = make_new(*tools, *what, join(start, n_samples - place, start), (place, n_samples))
    half_frame = sound_generator.frame_size // 2
    sound = item.sounds["new"][..., half_frame : n_samples + half_frame]
    yield item._replace(sounds={"new": sound}, is_new=True, is_loop=True)


def continue_recording(sound_generator, sources, request, *, num_spectrograms, manner):
    """Yield recordings that go on as new music, or have begun as it.

    Args:
        request: (path of the audio file, seconds to add; before it, if they are negative).
        num_spectrograms: how many continuations, each with a seed of its own; None: one.
    """
    path, duration = request[0], parse_seconds("--continue", request[1], -MAX_SECONDS)
    signal = load_song(sound_generator, path)
    n_samples = abs(round(duration * sound_generator.sample_rate))
    if n_samples == 0:
        raise UserError(f"--continue needs more or less than 0 seconds, got {request[1]}")
    place = signal.shape[-1] if duration > 0 else 0
    whole = join(signal[..., :place], n_samples, signal[..., place:])
    title = f"{path}, and how it may go on" if duration > 0 else f"How {path} may have begun"
    for seed in range(manner.seed, manner.seed + (num_spectrograms or 1)):
        what = "continue", f"{shorten(path)} {duration:g} s", title
        tools = sound_generator, sources, manner._replace(seed=seed)
        yield make_new(*tools, *what, whole, (place, place + n_samples), signal)


def fill_gap(sound_generator, sources, request, *, num_spectrograms, manner):
    """Yield recordings of which a part is new.

    Args:
        request: (path of the audio file, seconds at which the new part begins and ends).
        num_spectrograms: how many, each with a seed of its own; None: one.
    """
    path, *times = request
    begin, end = (parse_seconds("--fill", text) for text in times)
    signal = load_song(sound_generator, path)
    gap = [round(time * sound_generator.sample_rate) for time in (begin, end)]
    if not gap[0] < gap[1] <= signal.shape[-1]:
        seconds = signal.shape[-1] / sound_generator.sample_rate
        raise UserError(
            f"--fill needs FROM < TO <= {seconds:.2f} s, the length of {path}, "
            f"got {begin:g} and {end:g}"
        )
    for seed in range(manner.seed, manner.seed + (num_spectrograms or 1)):
        text = f"{begin:g} to {end:g} s"
        what = "fill", f"{shorten(path)} {text}", f"{path}, new from {text}"
        tools = sound_generator, sources, manner._replace(seed=seed)
        yield make_new(*tools, *what, signal, gap, signal)


def interpolate(sound_generator, sources, sounds, names, duration, *, manner):
    """Yield the end of a recording, a way of some seconds, and the beginning of another one.

    Args:
        sounds: two signals.
        names: of them.
    """
    most = round(CONTEXT_S * sound_generator.sample_rate)
    first, last = sounds[0][..., -most:], sounds[1][..., :most]
    n_new = round(duration * sound_generator.sample_rate)
    name = " ".join([*map(shorten, names), f"{duration:g} s"])
    what = "interpolate", name, f"From {names[0]} to {names[1]} in {duration:g} s"
    signal, place = join(first, n_new, last), first.shape[-1]
    yield make_new(sound_generator, sources, manner, *what, signal, (place, place + n_new))


def tour_components(sound_generator, sources, count, *, manner):
    """Yield a continuous sound for each of the main directions in which styles differ."""
    prior = sources.prior
    directions, mean = prior.find_directions(), prior.styles.mean(axis=0)
    for index, direction in enumerate(directions[:count]):
        title = f"Direction {index + 1}, from {TOUR[0]} to {TOUR[-1]} standard deviations"
        what = manner, "component", f"{index + 1:03d}", title
        way = [mean + offset * direction for offset in TOUR]
        n_samples = len(TOUR) * sound_generator.n_samples
        yield make_new(sound_generator, sources, *what, n_samples, way=way)


def explore(sound_generator, sources, offsets, *, manner):
    """Yield a piece at some standard deviations along the main directions in which styles differ.

    Args:
        offsets: of the first directions; the others are at their mean.
    """
    prior = sources.prior
    directions = prior.find_directions()
    if len(offsets) > len(directions):
        raise UserError(f"there are {len(directions)} directions to explore, got {len(offsets)}")
    place = " ".join(f"{offset:g}" for offset in offsets)
    way = [prior.styles.mean(axis=0) + np.array(offsets) @ directions[: len(offsets)]]
    what = manner, "explore", place, f"At {place} standard deviations along the main directions"
    yield make_new(sound_generator, sources, *what, sound_generator.n_samples, way=way)


def make_new(
    sound_generator, sources, manner, mode, name, title, signal, gap=None, recorded=None, way=()
):
    """An Item of a signal that is new in a gap.

    Args:
        name: what tells it apart from others of its mode and Manner.
        signal: float32 (n_samples,) or (2, n_samples), or the length of one that is all new.
        gap: its first sample and the one behind it; None: all of it.
        recorded: what to hear beside it, or None.
        way: styles that it passes through; none: those that the manner names or, if it names none,
            those of what is known on both sides or, if nothing is, one near a training track's.
    """
    prior = sources.prior
    rng = np.random.default_rng((manner.seed, *os.fsencode(f"{mode} {name}")))
    figures, peak = manner.describe(), float(np.median(prior.peaks))
    is_known = not isinstance(signal, int)
    if not is_known:
        n_channels = sound_generator.autoencoder.input_shape[2]
        signal = np.zeros((n_channels, signal) if n_channels > 1 else signal, np.float32)
    if not way and (manner.like or manner.toward or not is_known):
        way, peak, figures["in the manner of"] = find_way(sound_generator, sources, manner, rng)

    def fill(latents, known):
        gap = np.flatnonzero(~known)
        sides = latents[: gap[0]], latents[gap[-1] + 1 :]
        known_styles = [prior.find_style(side) for side in sides if len(side)]
        styles = way or known_styles or [prior.draw_style(rng)[0]]
        style = follow(np.array(styles), len(latents)) if len(styles) > 1 else styles[0]
        return prior.fill(latents, known, style, temperature=manner.temperature, rng=rng)

    begin, end = gap or (0, signal.shape[-1])
    sound = sound_generator.fill(signal, begin, end, fill, peak)
    (name,) = make_file_names([f"{mode}-{manner.label}-{name}".replace(" ", "_")])
    sounds = {"new": sound} if recorded is None else {"recorded": recorded, "new": sound}
    return Item(name, title, sounds, figures)


def follow(places, count):
    """The way through some places, (n, d), in as many even steps: (count, d)."""
    way = np.linspace(0, len(places) - 1, count)
    before, after = (places[edge(way).astype(int)] for edge in (np.floor, np.ceil))
    return before + way[:, np.newaxis] % 1 * (after - before)


def find_way(sound_generator, sources, manner, rng):
    """The styles that a Manner names: (list of them, their peak in dB, their names)."""
    asked = manner.like or (None,)
    found = [find_style(sound_generator, sources, name, rng) for name in asked]
    styles, peaks, names = map(list, zip(*found, strict=True))
    way, like = [np.mean(styles, axis=0)], " and ".join(names)
    if manner.toward:
        style, peak, name = find_style(sound_generator, sources, manner.toward, rng)
        way, peaks, like = [*way, style], [*peaks, peak], f"{like}, toward {name}"
    return way, float(max(peaks)), like


def find_style(sound_generator, sources, name, rng):
    """(style, peak in dB, name) of an audio file, a training track, or a random one of a genre or,
    for None, of all.

    Raises:
        UserError: it is none of these; it lists similar ones.
    """
    prior = sources.prior
    if name is not None and Path(name).is_file():
        latents, min_max = sound_generator.encode(load_song(sound_generator, name))
        return prior.find_style(latents), min_max["max"], str(name)
    if name is not None:
        name = find_name(name, [*prior.tracks, *prior.genres]) or name
    if name in prior.tracks:
        index = list(prior.tracks).index(name)
        style = prior.styles[index]
    elif name is None or name in prior.genres:
        style, index = prior.draw_style(rng, name)
    else:
        similar = list_similar(name, [*prior.genres, *prior.tracks])
        raise UserError(
            f"no audio file, genre or training track is called {name!r}, but: {similar}"
        )
    return style, prior.peaks[index], prior.tracks[index]


def reconstruct_files(sound_generator, sources, audio_files):
    """Yield the Item of each audio file, sent through the autoencoder whole.

    In place of one that cannot be read comes the UserError that says why.

    Args:
        audio_files: paths of files, and of folders of them.
    """
    songs = {}  # {name: path}
    for path in audio_files:
        try:
            songs |= {shorten(song): song for song in list_songs(path)}
        except (OSError, UserError) as error:
            yield UserError(error)
    for name, path in zip(make_file_names([*songs]), songs.values(), strict=True):
        remarks = []
        try:
            signal = load_song(sound_generator, path, remarks)
        except UserError as error:
            yield error
            continue
        title = f"{path} ({'; '.join(remarks)})" if remarks else str(path)
        sounds = {"recorded": signal, "new": sound_generator.reconstruct(signal)}
        yield Item(f"song-{name}", title, sounds, {})


def list_songs(path):
    """The path of a file, or those of the audio below a folder; what else it holds is named."""
    if not Path(path).is_dir():
        return [path]
    stamps, refused = list_audio_files(path)
    songs = []
    for name in stamps:
        try:
            next(decode(Path(path, name), SOME_RATE, mono=True))
            songs.append(str(Path(path, name)))
        except UserError as error:
            refused[name] = error
    for name, reason in refused.items():
        print(f"skipped {make_printable(Path(path, name))}: {reason}", file=sys.stderr)
    if not songs:
        raise UserError(f"{path} holds no audio")
    return songs


def load_song(sound_generator, path, remarks=None):
    """The signal of a whole audio file, as a SoundGenerator's features were loaded.

    What the user should know of it is printed, too.

    Raises:
        UserError: it cannot be read, or is shorter than a frame; it names the file.
    """
    remarks = [] if remarks is None else remarks
    rate, n_channels = sound_generator.sample_rate, sound_generator.autoencoder.input_shape[2]
    loader = Loader(rate, sound_generator.n_samples / rate, mono=n_channels == 1)
    try:
        signal = loader.load_whole(path, remarks)
        check_length(signal, sound_generator.frame_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for remark in remarks:
        print(f"note: {make_printable(path)} {remark}", file=sys.stderr)
    return signal


def parse_seconds(flag, text, least=0.0):
    """The seconds of a flag; a UserError if they are none."""
    try:
        return number(float, least, MAX_SECONDS)(text)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{flag} needs seconds from {least:g} up, got {text!r}") from error


def join(before, n_samples, after):
    """Two signals with silence between them."""
    silence = np.zeros((*before.shape[:-1], n_samples), np.float32)
    return np.concatenate([before, silence, after], axis=-1)


def shorten(name):
    """An audio file's name with a checksum of its content; what else has a name keeps it."""
    if not os.path.isfile(name):
        return name
    with open(name, "rb") as file:
        return f"{Path(name).name}-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"


def find_name(name, names):
    """The one of some names that is the same text, however it is encoded; None: none of them."""
    same = {unicodedata.normalize("NFC", str(each)): str(each) for each in names}
    return name if name in names else same.get(unicodedata.normalize("NFC", str(name)))


def hash_text(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def make_file_names(keys):
    """One name per key: its path with / as __, distinct and short enough for a file system."""
    names, lower_names = [], set()
    for key in keys:
        name = key.removesuffix(".npy").replace("/", "__")
        name = "".join("_" if c in RESERVED or not c.isprintable() else c for c in name)
        if len(name.encode()) > MAX_WAV_NAME_BYTES or name.casefold() in lower_names:
            name = f"{name[-MAX_WAV_NAME_BYTES // 4 :]}-{hash_text(key)}"
        names.append(name)
        lower_names.add(name.casefold())
    return names
