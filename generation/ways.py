"""The ways of making new sound.

In:  a Studio and, by way, a Prior, pieces or songs.
Out: Items: sounds with names, titles, log spectrograms and figures.

    item = compose(studio, prior, 60.0, Request("jazz", 0.8, seed=0))
"""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

import preprocess

TOUR = (-2, -1, 0, 1, 2)  # standard deviations along a direction
MAX_NAME_BYTES = 200  # of a WAV's name; file systems end at 255
RESERVED = '\\:*?"<>|'  # characters that some system has no place for in a name


class Item(NamedTuple):
    """Something to hear: its sounds by kind, their log spectrograms in dB, and its figures."""

    name: str  # of its files
    title: str
    sounds: dict  # {kind: float32 signal}; kinds are folders of SAMPLES
    log_spectrograms: dict  # {kind: float32 (n_bins, n_frames, n_channels)}
    figures: dict  # {name with unit: number or text}


class Request(NamedTuple):
    """What new music was asked for; told on the page, so that it can be made again."""

    genre: str | None
    temperature: float
    seed: int

    @property
    def label(self):
        """For file names."""
        return re.sub(r"[^\w-]+", "_", self.genre or "any")[:40] + f"-seed{self.seed}"

    @property
    def figures(self):
        return {"genre": self.genre or "any", "temperature": self.temperature, "seed": self.seed}


def make_samples(studio, prior, count, request):
    """Yield `count` new pieces from the prior."""
    rng = np.random.default_rng((request.seed, 1))
    latents, ranges = prior.sample(count, request.temperature, rng)
    decoded = studio.decode(latents, ranges)
    for index, (latent, log_spectrogram) in enumerate(zip(latents, decoded, strict=True)):
        signal = studio.generator.invert(studio.generator.convert_to_amplitude(log_spectrogram))
        yield make_new(
            f"sample-{request.label}-{index:03d}", f"New piece {index + 1}", signal,
            log_spectrogram, latent, request.figures,
        )  # fmt: skip


def compose(studio, prior, duration, request):
    """One new piece of `duration` seconds, a smooth walk through the prior."""
    n_samples = max(1, round(duration * studio.sample_rate))
    n_windows = studio.count_windows(n_samples)
    rng = np.random.default_rng((request.seed, 2))
    latents, ranges = prior.walk(n_windows, request.temperature, rng)
    signal, log_spectrogram = studio.join(studio.decode(latents, ranges), n_windows, n_samples)
    return make_new(
        f"compose-{request.label}-{duration:g}s", f"A piece of {duration:g} s", signal,
        log_spectrogram, latents, request.figures,
    )  # fmt: skip


def interpolate(studio, spectrograms, min_max_values, keys, steps):
    """Yield the morph between two pieces as `steps` pieces, and as one continuous sound."""
    shape = studio.generator.autoencoder.input_shape[:2]
    images = np.stack([preprocess.resize_spectrogram(image, shape) for image in spectrograms])
    first, last = studio.generator.autoencoder.encode(images)
    ends = np.array([[entry["min"], entry["max"]] for entry in min_max_values], np.float32)
    share = np.linspace(0, 1, steps, dtype=np.float32)[:, np.newaxis]
    latents, ranges = (1 - share) * first + share * last, (1 - share) * ends[0] + share * ends[1]
    name = (
        "morph-"
        + hashlib.sha256("\n".join(keys).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    )
    title = f"{keys[0]} to {keys[1]}"
    for index, log_spectrogram in enumerate(studio.decode(latents, ranges)):
        signal = studio.generator.invert(studio.generator.convert_to_amplitude(log_spectrogram))
        yield make_new(f"{name}-{index:03d}", f"{title}, {index + 1} of {steps}", signal,
            log_spectrogram, latents[index])  # fmt: skip
    n_samples = studio.generator.n_samples + (steps - 1) * studio.hop * studio.settings.hop_length
    signal, log_spectrogram = studio.join(studio.decode(latents, ranges), steps, n_samples)
    yield make_new(f"{name}-whole", f"{title}, continuous", signal, log_spectrogram, latents)


def tour_components(studio, pieces, count):
    """Yield a continuous sound for each of the main directions of the latent space."""
    from sklearn.decomposition import PCA

    count = min(count, len(pieces.latents) - 1, pieces.latents.shape[1])
    pca = PCA(count, svd_solver="full").fit(pieces.latents)
    ranges = np.repeat(pieces.ranges.mean(axis=0)[np.newaxis], len(TOUR), axis=0)
    n_samples = studio.generator.n_samples
    n_samples += (len(TOUR) - 1) * studio.hop * studio.settings.hop_length
    for index in range(count):
        steps = np.sqrt(pca.explained_variance_[index]) * np.array(TOUR)[:, np.newaxis]
        latents = (pca.mean_ + steps * pca.components_[index]).astype(np.float32)
        signal, log_spectrogram = studio.join(studio.decode(latents, ranges), len(TOUR), n_samples)
        share = 100 * pca.explained_variance_ratio_[index]
        yield make_new(
            f"component-{index + 1:03d}",
            f"Direction {index + 1}, {share:.0f} % of the variance, from {TOUR[0]} to {TOUR[-1]} "
            "standard deviations", signal, log_spectrogram, latents,
        )  # fmt: skip


def reconstruct_files(studio, audio_files):
    """Yield the Item of each audio file, sent through the autoencoder whole.

    Raises:
        ValueError: a file cannot be read.
    """
    settings = studio.settings
    loader = preprocess.Loader(settings.sample_rate, settings.duration, settings.mono)
    names = make_wav_names([Path(path).name for path in audio_files])
    for path, name in zip(audio_files, names, strict=True):
        try:
            signal = loader.load_whole(path)
        except ValueError as error:
            raise ValueError(f"{path} {error}: give another of --audio_files") from error
        sound, reconstructed, log_spectrogram, error = studio.reconstruct(signal)
        yield Item(
            f"song-{name.removesuffix('.wav')}", str(path),
            {"recorded": signal, "new": sound},
            {"recorded": log_spectrogram, "new": reconstructed}, {"image error": error},
        )  # fmt: skip


def make_new(name, title, signal, log_spectrogram, latents, figures=None):
    figures = {**(figures or {}), "latents": latents}
    return Item(name, title, {"new": signal}, {"new": log_spectrogram}, figures)


def make_wav_names(keys):
    """One file name a key: its path with / as __, distinct and short enough for a file system."""
    names, taken = [], set()
    for key in keys:
        name = key.removesuffix(".npy").replace("/", "__")
        name = "".join("_" if c in RESERVED or not c.isprintable() else c for c in name)
        if len(name.encode()) > MAX_NAME_BYTES or name.casefold() in taken:
            digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
            name = f"{name[-MAX_NAME_BYTES // 4 :]}-{digest}"
        names.append(f"{name}.wav")
        taken.add(name.casefold())
    return names
