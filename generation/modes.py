"""What generate.py makes: pairs to compare, songs through the model, and new music.

In:  a SoundGenerator, and what a command asks for, as plain values.
Out: Items: sounds with names, titles and figures.

    for item in Composer(sound_generator, prior, like=["jazz"]).compose(60.0): ...
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from generation.sources import list_songs, load_song
from soundgenerator import CONTEXT_S, SoundGenerator
from support.command_line import show_progress
from support.errors import UserError
from support.prior import TEMPERATURE, Prior, list_similar
from support.spectrograms import to_amplitude

BATCH_SIZE = 8  # pieces reconstructed at a time
TOUR = (-2, -1, 0, 1, 2)  # standard deviations along a direction
CHUNK_S = 1.5  # seconds of endless music that are made together
LOOP_START_S = 4.5  # seconds, at most, that a loop begins with, and comes back to
MAX_LABEL = 40  # characters
MAX_WAV_NAME_BYTES = 200  # file systems end at 255
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


def compare_pieces(generator, recordings, spectrograms, min_max_values, keys):
    """Yield the Item of each piece: recorded, its spectrogram inverted, and reconstructed.

    Args:
        recordings: the Recordings that the pieces may be of.
        spectrograms: float32 (n_bins, n_frames, n_channels), in [0, 1].
    """
    pieces = [*zip(keys, make_file_names(keys), spectrograms, min_max_values, strict=True)]
    for start in range(0, len(pieces), BATCH_SIZE):
        yield from compare_batch(generator, recordings, pieces[start : start + BATCH_SIZE])


def compare_batch(generator, recordings, pieces):
    """As compare_pieces() does, of a list of (key, name, spectrogram, min-max values)."""
    from generation.evaluation import measure_mel_distance, measure_spectral_convergence

    _, _, spectrograms, min_max_values = zip(*pieces, strict=True)
    inverted = generator.convert_spectrograms_to_audio(spectrograms, min_max_values)
    generated, latents = generator.generate(spectrograms, min_max_values)
    signals = {"original": inverted, "generated": generated}
    # The figures need the images, which generate() keeps to itself.
    images, ranges = generator.fit_images(spectrograms, min_max_values)
    reconstructed = generator.autoencoder.decode(latents)[:, :, : images.shape[2]]
    detailed = [*map(generator.add_detail, reconstructed)]
    shown = {"original": (spectrograms, min_max_values), "generated": (detailed, ranges)}
    for index, (key, name, spectrogram, _) in enumerate(pieces):
        figures = {"image error": float(np.square(reconstructed[index] - images[index]).mean())}
        sounds = {kind: signals[kind][index] for kind in shown}
        for kind, each in shown.items():
            log_spectrogram = generator.restore_log_spectrogram(*(part[index] for part in each))
            figures[f"spectral convergence of the {kind}, dB"] = measure_spectral_convergence(
                to_amplitude(log_spectrogram),
                sounds[kind],
                generator.frame_size,
                generator.hop_length,
            )
        figures["mel distance, dB"] = measure_mel_distance(*sounds.values(), generator.sample_rate)
        recorded = recordings.load(key, spectrogram)
        if recorded is not None:
            sounds = {"recorded": recorded, **sounds}
        yield Item(name, key, sounds, figures)


def reconstruct_songs(generator, audio_files):
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
            signal = load_song(generator, path, remarks)
        except UserError as error:
            yield error
            continue
        title = f"{path} ({'; '.join(remarks)})" if remarks else str(path)
        sounds = {"recorded": signal, "new": generator.reconstruct(signal)}
        yield Item(f"song-{name}", title, sounds, {})


@dataclasses.dataclass(frozen=True)
class Composer:
    """Makes new music; what is not left to what is known beside it, or to chance, is given here.

    Args:
        prior: the Prior of the same model.
        like: genres, training tracks and audio files, whose styles are mixed.
        toward: another one, that the style changes to.
        temperature: see Prior.fill.
    """

    generator: SoundGenerator
    prior: Prior
    like: tuple = ()
    toward: str = ""
    temperature: float = TEMPERATURE
    seed: int = 0

    @property
    def label(self):
        """What is given, as part of a file's name."""
        like, toward = [*map(shorten, self.like)], [shorten(self.toward)] if self.toward else []
        short = "-to-".join(["+".join(like) or "any", *toward])
        if len(short) > MAX_LABEL or not all(map(PLAIN_NAME.fullmatch, [*like, *toward])):
            short = re.sub(r"[^\w+-]+", "_", short)[-MAX_LABEL:]
            short = f"{short}-{hash_text(repr((self.like, self.toward)))}"
        return f"{short}-t{self.temperature:g}-seed{self.seed}"

    @property
    def typical_peak(self):
        """The median of the training tracks' peaks, dB."""
        return float(np.median(self.prior.peaks))

    def sample(self, count):
        """Yield `count` new pieces."""
        silence = self.make_silence(self.generator.n_samples)
        for index in show_progress(range(count), count, "new pieces"):
            what = "sample", f"{index:03d}", f"New piece {index + 1}", silence
            yield self._make(*what, is_new=True)

    def compose(self, seconds):
        """Yield one new piece."""
        silence = self.make_silence(max(1, round(seconds * self.generator.sample_rate)))
        text = f"{seconds:g} s"
        yield self._make("compose", text, f"A piece of {text}", silence, is_new=True)

    def loop(self, seconds, bpm=None):
        """Yield a new piece that goes on without a seam where it is repeated.

        Args:
            seconds: of it; with bpm, of the nearest whole number of beats.
        """
        generator = self.generator
        if bpm:
            seconds = max(1, round(seconds * bpm / 60)) * 60 / bpm
        n_samples = max(2 * generator.frame_size, round(seconds * generator.sample_rate))
        place = max(generator.frame_size, round(LOOP_START_S * generator.sample_rate))
        place = min(n_samples // 2, place)
        silence, text = self.make_silence(place), f"{seconds:g} s"
        found = self.find_way(np.random.default_rng(self.seed))
        start = self._make("loop", f"start of {text}", "", silence, found=found).sounds["new"]
        # The way from its start to its start, in each of which half a frame fades over.
        whole = join(start, n_samples - place, start)
        back = found[0][::-1], *found[1:]
        how = {"found": back, "is_new": True, "is_loop": True}
        item = self._make("loop", text, f"A loop of {text}", whole, (place, n_samples), **how)
        half_frame = generator.frame_size // 2
        sound = item.sounds["new"][..., half_frame : n_samples + half_frame]
        yield item._replace(sounds={"new": sound})

    def extend(self, path, seconds, count=1):
        """Yield a recording that goes on as new music or, for negative seconds, has begun as it.

        Args:
            count: in how many ways, each with a seed of its own.
        """
        signal = load_song(self.generator, path)
        n_samples = abs(round(seconds * self.generator.sample_rate))
        if n_samples == 0:
            raise UserError(f"continue needs more or less than 0 seconds, got {seconds:g}")
        place = signal.shape[-1] if seconds > 0 else 0
        whole = join(signal[..., :place], n_samples, signal[..., place:])
        title = f"{path}, and how it may go on" if seconds > 0 else f"How {path} may have begun"
        what = "continue", f"{shorten(path)} {seconds:g} s", title
        yield from self._make_variants(count, signal, *what, whole, (place, place + n_samples))

    def fill(self, path, begin, end, count=1):
        """Yield a recording that is new from `begin` to `end`, in seconds; see extend()."""
        signal = load_song(self.generator, path)
        rate = self.generator.sample_rate
        gap = round(begin * rate), round(end * rate)
        if not gap[0] < gap[1] <= signal.shape[-1]:
            raise UserError(
                f"fill needs FROM < TO <= {signal.shape[-1] / rate:.2f} s, the length of {path}, "
                f"got {begin:g} and {end:g}"
            )
        text = f"{begin:g} to {end:g} s"
        what = "fill", f"{shorten(path)} {text}", f"{path}, new from {text}"
        yield from self._make_variants(count, signal, *what, signal, gap)

    def interpolate(self, sounds, names, seconds):
        """Yield the end of a recording, a way of some seconds, and the beginning of another one.

        Args:
            sounds: two signals.
            names: of them.
        """
        rate = self.generator.sample_rate
        most = round(CONTEXT_S * rate)
        first, last = sounds[0][..., -most:], sounds[1][..., :most]
        place, n_new = first.shape[-1], round(seconds * rate)
        name = " ".join([*map(shorten, names), f"{seconds:g} s"])
        what = "interpolate", name, f"From {names[0]} to {names[1]} in {seconds:g} s"
        yield self._make(*what, join(first, n_new, last), (place, place + n_new))

    def tour(self, count):
        """Yield a continuous sound for each of the main directions in which styles differ."""
        mean = self.prior.styles.mean(axis=0)
        silence = self.make_silence(len(TOUR) * self.generator.n_samples)
        for index, direction in enumerate(self.prior.find_directions()[:count]):
            title = f"Direction {index + 1}, from {TOUR[0]} to {TOUR[-1]} standard deviations"
            way = [mean + offset * direction for offset in TOUR]
            found = way, self.typical_peak, ""
            yield self._make("component", f"{index + 1:03d}", title, silence, found=found)

    def explore(self, offsets):
        """Yield a piece at some standard deviations along the main directions.

        Args:
            offsets: of the first directions; the others are at their mean.
        """
        directions = self.prior.find_directions()
        if len(offsets) > len(directions):
            raise UserError(
                f"there are {len(directions)} directions to explore, got {len(offsets)}"
            )
        place = " ".join(f"{offset:g}" for offset in offsets)
        style = self.prior.styles.mean(axis=0) + np.array(offsets) @ directions[: len(offsets)]
        title = f"At {place} standard deviations along the main directions"
        silence = self.make_silence(self.generator.n_samples)
        found = [style], self.typical_peak, ""
        yield self._make("explore", place, title, silence, found=found)

    def _make_variants(self, count, recorded, *what):
        """Yield Items of _make() with seeds that follow each other, beside a recording."""
        for seed in range(self.seed, self.seed + count):
            generator = dataclasses.replace(self.generator, seed=seed)
            item = dataclasses.replace(self, generator=generator, seed=seed)._make(*what)
            yield item._replace(sounds={"recorded": recorded, **item.sounds})

    def make_silence(self, n_samples):
        n_channels = self.generator.autoencoder.input_shape[2]
        return np.zeros((n_channels, n_samples) if n_channels > 1 else n_samples, np.float32)

    def _make(self, mode, name, title, signal, gap=None, *, found=None, **fields):
        """An Item of a signal that is new in a gap.

        Args:
            name: what tells it apart from others of its mode and label.
            signal: float32 (n_samples,) or (2, n_samples).
            gap: its first sample and the one behind it; None: all of it.
            found: styles that it passes through, their peak and names, as find_way() has them;
                None: what is asked for or, if nothing is, the styles of what is known on both
                sides or, if nothing is known, one near a training track's.
            fields: of the Item.
        """
        rng = np.random.default_rng((self.seed, *os.fsencode(f"{mode} {name}")))
        figures = {"like": " and ".join(self.like) or "any", "toward": self.toward}
        figures |= {"temperature": self.temperature, "seed": self.seed}
        if not found and (self.like or self.toward or not gap):
            found = self.find_way(rng)
        way, peak, figures["in the manner of"] = found or ((), self.typical_peak, "")

        def fill(latents, known):
            unknown = np.flatnonzero(~known)
            sides = latents[: unknown[0]], latents[unknown[-1] + 1 :]
            known_styles = [self.prior.find_style(side) for side in sides if len(side)]
            styles = way or known_styles or [self.prior.draw_style(rng)[0]]
            style = follow(np.array(styles), len(latents)) if len(styles) > 1 else styles[0]
            return self.prior.fill(latents, known, style, temperature=self.temperature, rng=rng)

        sound = self.generator.fill(signal, *(gap or (0, signal.shape[-1])), fill, peak)
        (name,) = make_file_names([f"{mode}-{self.label}-{name}".replace(" ", "_")])
        figures = {name: value for name, value in figures.items() if value != ""}
        return Item(name, title, {"new": sound}, figures, **fields)

    def find_way(self, rng):
        """The styles that are asked for: (list of them, their peak in dB, their names)."""
        found = [self._look_up_style(name, rng) for name in self.like or (None,)]
        styles, peaks, names = map(list, zip(*found, strict=True))
        way, like = [np.mean(styles, axis=0)], " and ".join(names)
        if self.toward:
            style, peak, name = self._look_up_style(self.toward, rng)
            way, peaks, like = [*way, style], [*peaks, peak], f"{like}, toward {name}"
        return way, float(max(peaks)), like

    def _look_up_style(self, name, rng):
        """(style, peak in dB, name) of an audio file, a training track, or a random one of a genre
        or, for None, of all.

        Raises:
            UserError: it is none of these; it lists similar ones.
        """
        prior, tracks = self.prior, self.prior.tracks.tolist()
        if name is not None and Path(name).is_file():
            latents, min_max = self.generator.encode(load_song(self.generator, name))
            return prior.find_style(latents), min_max["max"], str(name)
        found = None if name is None else find_name(name, [*tracks, *prior.genres])
        if name is not None and found is None:
            similar = list_similar(name, [*prior.genres, *tracks])
            raise UserError(
                f"no audio file, genre or training track is called {name!r}, but: {similar}"
            )
        if found in tracks:
            index = tracks.index(found)
            style = prior.styles[index]
        else:
            style, index = prior.draw_style(rng, found)
        return style, prior.peaks[index], tracks[index]


def compose_endlessly(get_composer):
    """Yield new music without an end, in chunks of CHUNK_S that follow each other without a seam.

    The range of decibels stays its style's: if it were what came before's, it would grow and grow.

    Args:
        get_composer: from the number of a chunk to its Composer, whose style does not change.
    Yields:
        float32 (n_samples,) or (2, n_samples).
    """
    known = asked = None  # what came before, and with which style and seed
    for number in itertools.count():
        composer = get_composer(number)
        generator = composer.generator
        if asked != (composer.like, composer.seed):
            asked, rng = (composer.like, composer.seed), np.random.default_rng(composer.seed)
            (style, *_), peak, _ = composer.find_way(rng)
        how = {"style": style, "temperature": composer.temperature, "rng": rng}
        known = composer.make_silence(0) if known is None else known
        # The last half frame fades over to what comes next. Behind it comes another one, unheard:
        # the end of a sound is seen by too few frames.
        half_frame, place = generator.frame_size // 2, known.shape[-1]
        n_new = round(CHUNK_S * generator.sample_rate)
        signal = join(known, n_new + half_frame, known[..., :0])
        fill = functools.partial(composer.prior.fill, **how)
        sound = generator.fill(signal, place, signal.shape[-1], fill, peak, True)[..., :-half_frame]
        yield sound[..., max(0, place - half_frame) : -half_frame]
        known = sound[..., -round(CONTEXT_S * generator.sample_rate) - half_frame :]


def follow(places, count):
    """The way through some places, (n, d), in as many even steps: (count, d)."""
    way = np.linspace(0, len(places) - 1, count)
    before, after = (places[edge(way).astype(int)] for edge in (np.floor, np.ceil))
    return before + way[:, np.newaxis] % 1 * (after - before)


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
