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

from generation.prior import Prior, TrainingPieces
from preprocess import check_length
from support import dataset
from support.audio import find_audio, list_audio_files
from support.command_line import number, show_progress
from support.dataset import add_channel_axis
from support.errors import UserError
from support.files import read_json
from support.settings import Settings
from support.spectrograms import to_amplitude, to_image

STEPS = 8  # pieces of a morph
TOUR = (-2, -1, 0, 1, 2)  # standard deviations along a direction
MAX_WAV_NAME_BYTES = 200  # file systems end at 255
SAME_IMAGE = 1e-3  # mean absolute difference, in [0, 1]: more than float16 rounds
RESERVED = '\\:*?"<>|'  # characters that some system does not allow in a name


class Item(NamedTuple):
    """Something to hear: its sounds by kind, their log spectrograms in dB, and its figures."""

    name: str  # of its files
    title: str
    sounds: dict  # {kind: float32 signal}; a kind has a folder of its own
    log_spectrograms: dict  # {kind: float32 (n_bins, n_frames, n_channels)}
    figures: dict  # {name with unit: number or text}
    latents: np.ndarray | None = None  # of each window, if it is to be compared with others


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
            (signal, log spectrogram in dB).
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
        return (signal[..., half_frame:-half_frame], log_spectrogram) if is_same else None


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
    signals, latents = generator.generate(spectrograms, min_max_values)
    original_signals = generator.convert_spectrograms_to_audio(spectrograms, min_max_values)
    images, generated = generator.fit_images(spectrograms), generator.autoencoder.decode(latents)
    for index, (key, name) in enumerate(zip(keys, make_file_names(keys), strict=True)):
        sounds = {"original": original_signals[index], "generated": signals[index]}
        original, restored = (
            generator.restore_log_spectrogram(image, min_max_values[index])
            for image in (spectrograms[index], generated[index])
        )
        log_spectrograms = {"original": original, "generated": generator.add_texture(restored)}
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
        if recorded:
            signal, log_spectrograms["recorded"] = recorded
            sounds = {"recorded": signal, **sounds}
        yield Item(name, key, sounds, log_spectrograms, figures)


def make_samples(sound_generator, sources, count, *, genre, temperature, seed):
    """Yield `count` new pieces from the prior."""
    prior = load_prior(sources.model, genre)
    rng = np.random.default_rng((seed, 1))
    latents, ranges, groups = prior.sample(count, temperature, rng)
    decoded = sound_generator.decode(latents, make_min_max_values(ranges))
    log_spectrograms = [*map(sound_generator.add_texture, decoded)]
    signals = sound_generator.invert_all(log_spectrograms, sound_generator.n_samples)
    for index, signal in enumerate(show_progress(signals, count, "new pieces")):
        yield make_new_item(
            f"sample-{make_label(genre, temperature, seed)}-{index:03d}",
            f"New piece {index + 1}",
            signal,
            log_spectrograms[index],
            describe_origin(genre, temperature, seed, groups[index]),
            latents[index : index + 1],
        )


def compose(sound_generator, sources, duration, *, genre, temperature, seed):
    """Yield one new piece of `duration` seconds, whose windows follow each other as in music."""
    prior = load_prior(sources.model, genre)
    n_samples = max(1, round(duration * sound_generator.sample_rate))
    n_windows = sound_generator.count_windows(n_samples)
    rng = np.random.default_rng((seed, 2))
    latents, ranges, group = prior.walk(n_windows, temperature, rng)
    windows = sound_generator.decode(latents, make_min_max_values(ranges))
    windows = show_progress(windows, n_windows, "windows")
    yield make_new_item(
        f"compose-{make_label(genre, temperature, seed)}-{duration:g}s",
        f"A piece of {duration:g} s",
        *sound_generator.join(windows, n_samples),
        describe_origin(genre, temperature, seed, group),
        latents,
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
    generator, prior = sound_generator, load_prior(sources.model, genre)
    image, min_max = generator.make_image(generator.cut_last_window(signal))
    start = generator.autoencoder.encode(image[np.newaxis])[0], (min_max["min"], min_max["max"])
    n_samples = signal.shape[-1] - generator.find_end(signal)  # of its last half frame
    n_samples += max(1, round(duration * generator.sample_rate))
    n_windows = 1 + generator.count_windows(n_samples)
    (name,) = make_file_names([Path(path).name])
    for own_seed in range(seed, seed + (num_spectrograms or 1)):
        rng = np.random.default_rng((own_seed, 3))
        latents, ranges, group = prior.walk(n_windows, temperature, rng, start)
        windows = generator.decode(latents, make_min_max_values(ranges))
        windows = show_progress(windows, n_windows, "windows")
        new, log_spectrogram = generator.continue_sound(signal, windows, n_samples)
        sound = np.concatenate([signal[..., : generator.find_end(signal)], new], axis=-1)
        label = make_label(genre, temperature, own_seed)
        figures = describe_origin(genre, temperature, own_seed, group)
        yield Item(
            f"continue-{name}-{label}-{duration:g}s",
            f"{path}, and how it may go on for {duration:g} s",
            {"recorded": signal, "new": sound},
            {"new": log_spectrogram},
            figures,
        )


def morph(sound_generator, sources, spectrograms, min_max_values, keys, *, steps):
    """Yield the morph between two pieces as `steps` pieces, and as one continuous sound."""
    images = sound_generator.fit_images(spectrograms)
    first, last = sound_generator.autoencoder.encode(images)
    share = np.linspace(0, 1, steps, dtype=np.float32)[:, np.newaxis]
    ends = dataset.list_ranges(min_max_values)
    latents = (1 - share) * first + share * last
    ranges = make_min_max_values((1 - share) * ends[0] + share * ends[1])
    windows = [*sound_generator.decode(latents, ranges)]
    log_spectrograms = [*map(sound_generator.add_texture, windows)]
    name, title = f"morph-{hash_text(chr(10).join(keys))}", f"{keys[0]} to {keys[1]}"
    signals = sound_generator.invert_all(log_spectrograms, sound_generator.n_samples)
    for index, signal in enumerate(show_progress(signals, steps, "steps")):
        step_title = f"{title}, {index + 1} of {steps}"
        yield make_new_item(f"{name}-{index:03d}", step_title, signal, log_spectrograms[index])
    joined = join_all(sound_generator, windows)
    yield make_new_item(f"{name}-whole", f"{title}, continuous", *joined)


def tour_components(sound_generator, sources, count):
    """Yield a continuous sound for each of the main directions of the latent space."""
    space = read_prior(sources.model).space
    n_components = len(space.components)
    total = TrainingPieces.load(sources.model).latents.var(axis=0, ddof=1).sum()
    for index in range(min(count, n_components)):
        points = np.outer(TOUR, np.eye(n_components + 2)[index])
        latents, ranges = space.restore(points)
        share = 100 * np.square(space.scale[index]) / total
        windows = [*sound_generator.decode(latents, make_min_max_values(ranges))]
        yield make_new_item(
            f"component-{index + 1:03d}",
            f"Direction {index + 1}, {share:.0f} % of the variance, from {TOUR[0]} to {TOUR[-1]} "
            "standard deviations",
            *join_all(sound_generator, windows),
        )


def explore(sound_generator, sources, offsets):
    """Yield the piece at some standard deviations along the main directions of the latent space.

    Args:
        offsets: of the first directions; the others are at their mean.
    """
    space = read_prior(sources.model).space
    n_components = len(space.components)
    if len(offsets) > n_components:
        raise UserError(f"there are {n_components} directions to explore, got {len(offsets)}")
    point = np.pad(np.array(offsets, np.float64), (0, n_components + 2 - len(offsets)))
    latents, ranges = space.restore(point[np.newaxis])
    (window,) = sound_generator.decode(latents, make_min_max_values(ranges))
    log_spectrogram = sound_generator.add_texture(window)
    (signal,) = sound_generator.invert_all([log_spectrogram], sound_generator.n_samples)
    place = " ".join(f"{offset:g}" for offset in offsets)
    title = f"At {place} standard deviations along the main directions"
    yield make_new_item(f"explore-{place.replace(' ', '_')[:100]}", title, signal, log_spectrogram)


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
        sound, reconstructed, log_spectrogram, error = sound_generator.reconstruct(signal)
        sounds = {"recorded": signal, "new": sound}
        log_spectrograms = {"recorded": log_spectrogram, "new": reconstructed}
        yield Item(f"song-{name}", title, sounds, log_spectrograms, {"image error": error})


def list_songs(path):
    """The path of a file, or those of all files below a folder."""
    if not Path(path).is_dir():
        return [path]
    return [str(Path(path, name)) for name in list_audio_files(path)[0]]


def load_piece(sound_generator, sources, path):
    """(image, its range {"min": dB, "max": dB}) of the first window of an audio file."""
    signal = load_song(sound_generator, sources, path)
    return sound_generator.make_image(next(sound_generator.cut_windows(signal)))


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
        f"prior over {prior.counts.sum()} training pieces in {len(prior.counts)} groups and "
        f"{prior.n_components} components",
        flush=True,
    )
    return prior


def join_all(sound_generator, windows):
    """(signal, log spectrogram) of windows that overlap by half, each as long as a piece."""
    n_frames = (len(windows) - 1) * sound_generator.window_hop
    n_samples = sound_generator.n_samples + n_frames * sound_generator.hop_length
    return sound_generator.join(windows, n_samples)


def make_min_max_values(ranges):
    """[{"min": dB, "max": dB}] of (min, max) pairs."""
    return [{"min": low, "max": high} for low, high in ranges]


def make_new_item(name, title, signal, log_spectrogram, figures=None, latents=None):
    return Item(name, title, {"new": signal}, {"new": log_spectrogram}, figures or {}, latents)


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
