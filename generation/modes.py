"""The modes of generate.py: each makes Items of plain values.

In:  a SoundGenerator, the Sources that it may read, and the values of flags.
Out: Items: sounds with names, titles, log spectrograms and figures.

    for item in compose(sound_generator, sources, 60.0, genre="jazz", temperature=0.8, seed=0): ...
"""

import argparse
import functools
import hashlib
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from preprocess import MinMaxNormaliser, check_length
from support import dataset
from support.audio import find_audio, list_audio_files
from support.command_line import number, show_progress
from support.dataset import add_channel_axis
from support.errors import UserError
from support.files import read_json
from support.prior import Prior
from support.settings import Settings
from support.spectrograms import to_amplitude, to_image

STEPS = 8  # pieces of a morph
TOUR = (-2, -1, 0, 1, 2)  # standard deviations along a direction
PAST_S = 10.0  # seconds of a recording, at most, that its continuation is encoded with
MAX_WAV_NAME_BYTES = 200  # file systems end at 255
SAME_IMAGE = 1e-3  # mean absolute difference, in [0, 1]: more than float16 rounds
RESERVED = '\\:*?"<>|'  # characters that some system does not allow in a name


class Item(NamedTuple):
    """Something to hear: its sounds by kind, and its figures."""

    name: str  # of its files
    title: str
    sounds: dict  # {kind: float32 signal}; a kind has a folder of its own
    figures: dict  # {name with unit: number or text}
    is_new: bool = False  # and is to be compared with training music


class Sources(NamedTuple):
    """What generate.py may read from."""

    model: Path  # folder
    spectrograms_path: Path
    min_max_values_path: Path


class Recordings:
    """The audio that features were made of, as far as it is still there and still the same.

    Args:
        spectrograms_path: the folder of features; source.json beside it names that of the audio.
    """

    def __init__(self, spectrograms_path):
        self._pipeline = Settings.load(spectrograms_path / "settings.json").make_pipeline()
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
            "generated": generator.add_texture(
                generator.restore_log_spectrogram(generated[index], ranges[index])
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


def make_samples(sound_generator, sources, count, *, genre, temperature, seed):
    """Yield `count` new pieces from the prior."""
    prior = load_prior(sources.model, genre)
    n_samples = sound_generator.n_samples
    n_steps = sound_generator.count_steps(n_samples)
    for index in show_progress(range(count), count, "new pieces"):
        rng = np.random.default_rng((seed, 1, index))
        latents, peak, group = prior.walk(n_steps, temperature, rng)
        yield make_new_item(
            f"sample-{make_label(genre, temperature, seed)}-{index:03d}",
            f"New piece {index + 1}",
            sound_generator.make_sound(latents, make_range(sound_generator, peak), n_samples),
            describe_origin(genre, temperature, seed, group),
            is_new=True,
        )


def compose(sound_generator, sources, duration, *, genre, temperature, seed):
    """Yield one new piece of `duration` seconds."""
    prior = load_prior(sources.model, genre)
    n_samples = max(1, round(duration * sound_generator.sample_rate))
    rng = np.random.default_rng((seed, 2))
    latents, peak, group = prior.walk(sound_generator.count_steps(n_samples), temperature, rng)
    yield make_new_item(
        f"compose-{make_label(genre, temperature, seed)}-{duration:g}s",
        f"A piece of {duration:g} s",
        sound_generator.make_sound(latents, make_range(sound_generator, peak), n_samples),
        describe_origin(genre, temperature, seed, group),
        is_new=True,
    )


def continue_recording(
    sound_generator, sources, request, *, num_spectrograms, genre, temperature, seed
):
    """Yield recordings that go on as new music: the file itself, then what the model makes of it.

    Args:
        request: (path of the audio file, seconds to add).
        num_spectrograms: how many continuations, each with a seed of its own; None: one.
    """
    path, duration = request[0], parse_duration(request[1])
    signal = load_song(sound_generator, sources, path)
    prior = load_prior(sources.model, genre)
    n_samples = max(1, round(duration * sound_generator.sample_rate))
    end = signal[..., -round(PAST_S * sound_generator.sample_rate) :]
    known, min_max = sound_generator.encode_past(end)
    n_steps = 1 + sound_generator.count_steps(n_samples + sound_generator.frame_size)
    (name,) = make_file_names([Path(path).name])
    for own_seed in range(seed, seed + (num_spectrograms or 1)):
        rng = np.random.default_rng((own_seed, 3))
        latents, _, group = prior.walk(n_steps, temperature, rng, past=known[-1])
        latents = np.concatenate([known, latents])
        sound = sound_generator.continue_sound(signal, latents, min_max, len(known), n_samples)
        label = make_label(genre, temperature, own_seed)
        yield Item(
            f"continue-{name}-{label}-{duration:g}s",
            f"{path}, and how it may go on for {duration:g} s",
            {"recorded": signal, "new": sound},
            describe_origin(genre, temperature, own_seed, group),
        )


def morph(sound_generator, sources, spectrograms, min_max_values, keys, *, steps):
    """Yield the morph between two pieces as `steps` pieces, and as one continuous sound."""
    images, ranges = sound_generator.fit_images(spectrograms, min_max_values)
    first, last = sound_generator.autoencoder.encode(images)
    name, title = f"morph-{hash_text(chr(10).join(keys))}", f"{keys[0]} to {keys[1]}"
    latents, n_samples = [], sound_generator.n_samples
    for index, share in enumerate(np.linspace(0, 1, steps, dtype=np.float32)):
        latents.append((1 - share) * first + share * last)
        peak = (1 - share) * ranges[0]["max"] + share * ranges[1]["max"]
        sound = sound_generator.make_sound(
            latents[-1], make_range(sound_generator, peak), n_samples
        )
        yield make_new_item(f"{name}-{index:03d}", f"{title}, {index + 1} of {steps}", sound)
    peak = max(each["max"] for each in ranges)
    autoencoder = sound_generator.autoencoder
    width, step = autoencoder.input_shape[1], autoencoder.frames_per_step
    n_whole = max(1, width // step)  # steps of a piece without what pads it
    whole = np.concatenate([each[:n_whole] for each in latents])
    n_samples = round(steps * n_samples * min(1, n_whole * step / width))
    whole = whole, make_range(sound_generator, peak), n_samples
    yield make_new_item(f"{name}-whole", f"{title}, continuous", sound_generator.make_sound(*whole))


def tour_components(sound_generator, sources, count):
    """Yield a continuous sound for each of the main directions in which tracks differ."""
    prior = read_prior(sources.model)
    directions = prior.find_directions()
    n_samples = len(TOUR) * sound_generator.n_samples
    n_steps = sound_generator.count_steps(n_samples)
    for index, direction in enumerate(directions[:count]):
        place = np.interp(np.linspace(0, 1, n_steps), np.linspace(0, 1, len(TOUR)), TOUR)
        yield make_new_item(
            f"component-{index + 1:03d}",
            f"Direction {index + 1}, from {TOUR[0]} to {TOUR[-1]} standard deviations",
            walk_at(sound_generator, prior, np.outer(place, direction), n_samples),
        )


def explore(sound_generator, sources, offsets):
    """Yield a piece at some standard deviations along the main directions in which tracks differ.

    Args:
        offsets: of the first directions; the others are at their mean.
    """
    prior = read_prior(sources.model)
    directions = prior.find_directions()
    if len(offsets) > len(directions):
        raise UserError(f"there are {len(directions)} directions to explore, got {len(offsets)}")
    place = " ".join(f"{offset:g}" for offset in offsets)
    n_samples = sound_generator.n_samples
    offset = np.array(offsets, np.float32) @ directions[: len(offsets)]
    yield make_new_item(
        f"explore-{place.replace(' ', '_')[:100]}",
        f"At {place} standard deviations along the main directions",
        walk_at(sound_generator, prior, offset, n_samples),
    )


def walk_at(sound_generator, prior, offset, n_samples):
    """The sound of a walk about the mean of all groups, and an offset to it."""
    mean = prior.centres.mean(axis=0)
    middle = prior._replace(
        **{name: getattr(prior, name)[:1] for name in ("groups", "genres", "counts")},
        peaks=np.array([np.median(prior.peaks)]),
        centres=mean[np.newaxis],
        spreads=np.ones(1, np.float32),
    )
    n_steps = sound_generator.count_steps(n_samples)
    latents, peak, _ = middle.walk(n_steps, 1.0, np.random.default_rng(0), offset=offset)
    return sound_generator.make_sound(latents, make_range(sound_generator, peak), n_samples)


def reconstruct_files(sound_generator, sources, audio_files):
    """Yield the Item of each audio file, sent through the autoencoder whole.

    In place of one that cannot be read comes the UserError that says why.

    Args:
        audio_files: paths of files, and of folders of them.
    """
    audio_files = [*itertools.chain.from_iterable(map(list_songs, audio_files))]
    names = make_file_names([Path(path).name for path in audio_files])
    for path, name in zip(audio_files, names, strict=True):
        remarks = []
        try:
            signal = load_song(sound_generator, sources, path, remarks)
        except UserError as error:
            yield error
            continue
        title = f"{path} ({'; '.join(remarks)})" if remarks else str(path)
        sounds = {"recorded": signal, "new": sound_generator.reconstruct(signal)}
        yield Item(f"song-{name}", title, sounds, {})


def list_songs(path):
    """The path of a file, or those of all files below a folder."""
    if not Path(path).is_dir():
        return [path]
    return [str(Path(path, name)) for name in list_audio_files(path)[0]]


def load_piece(sound_generator, sources, path):
    """(spectrogram, its range {"min": dB, "max": dB}) of the first piece of an audio file."""
    settings = Settings.load(sources.model / "settings.json")
    signal = load_song(sound_generator, sources, path)[..., : settings.n_samples]
    missing = settings.n_samples - signal.shape[-1]
    signal = np.pad(signal, [(0, 0)] * (signal.ndim - 1) + [(0, missing)])
    log_spectrogram = add_channel_axis(settings.make_extractor().extract(signal))
    return to_image(log_spectrogram, MinMaxNormaliser(0, 1))


def load_song(sound_generator, sources, path, remarks=None):
    """The signal of a whole audio file, as the model's features were loaded; see Loader.load().

    Raises:
        UserError: it cannot be read, or is shorter than a frame; it names the file.
    """
    loader = Settings.load(sources.model / "settings.json").make_loader()
    try:
        signal = loader.load_whole(path, remarks)
        check_length(signal, sound_generator.frame_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return signal


@functools.cache
def read_prior(model):
    """The Prior of a model folder, read once: an app draws from it at each move of a slider."""
    return Prior.load(model)


def load_prior(model, genre):
    """The Prior of a model, over one genre or over all."""
    prior = read_prior(model).take_genre(genre)
    print(
        f"prior over {prior.counts.sum()} training steps in {len(prior.counts)} groups", flush=True
    )
    return prior


def make_range(sound_generator, peak):
    """{"min": dB, "max": dB} of a peak in dB."""
    return {"min": peak - sound_generator.top_db, "max": peak}


def make_new_item(name, title, signal, figures=None, is_new=False):
    return Item(name, title, {"new": signal}, figures or {}, is_new)


def parse_duration(text):
    """The seconds of --continue; a UserError if they are none."""
    try:
        return number(float, 0.01)(text)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(
            f"--continue needs a FILE and 0.01 or more SECONDS, got {text!r}"
        ) from error


def describe_origin(genre, temperature, seed, group):
    """What new music was asked for, and what it is like, as figures."""
    figures = {"genre": genre or "any", "temperature": temperature, "seed": seed}
    return {**figures, "in the manner of": str(group)}


def make_label(genre, temperature, seed):
    """What new music was asked for, for file names."""
    return re.sub(r"[^\w-]+", "_", genre or "any")[:40] + f"-t{temperature:g}-seed{seed}"


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
