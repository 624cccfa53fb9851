"""Make sound with a trained autoencoder: pairs to compare, new pieces, morphs, music of any length.

In:  model/ as train.py wrote it and, but for new music, saved_data/ as preprocess.py wrote it.
Out: samples/original/*.wav and samples/generated/*.wav, same names, named after their sources;
     samples/new/*.wav; samples/index.html to hear, see and compare it all; samples/metrics.csv.

    python generate.py --num_spectrograms 5
    python generate.py --compose 60 --temperature 0.8
"""

import argparse
import collections.abc
import difflib
import hashlib
import io
import math
import re
import sys
import warnings
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

import preprocess
from support import dataset
from support.arrays import load_arrays
from support.command_line import exit_with_one_line, number
from support.files import make_printable, read_json, write_atomically, write_csv, write_figure

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
MAX_NAME_BYTES = 200  # of a WAV's name; file systems end at 255
RESERVED = '\\:*?"<>|'  # characters that some system has no place for in a name

PRIOR_VARIANCE = 0.99  # share of the latents' variance that the prior models
PRIOR_COMPONENTS = (1, 2, 4, 8, 16)  # Gaussians to choose from
PRIOR_MARGIN = 1e-3  # added to the variances
PRIOR_FOLDS = 4  # of the cross-validation that chooses
PRIOR_POINTS = 2000  # at most, that it chooses by; the chosen mixture is fitted to all
KEY_WINDOWS = 4  # windows between two draws of a long walk
TOUR = (-2, -1, 0, 1, 2)  # standard deviations along a direction
DECODE_BATCH = 32  # windows decoded at a time
SILENT_DB = -100.0  # what preprocess.py gives digital silence

N_MELS = 80  # bands that new pieces are compared in
POOLED_FRAMES = 8  # that a mel statistic is taken over
N_NEAR = 10  # training pieces nearest in latent, whose mel distance is measured
MAX_JUDGED = 200  # training and held-out pieces, at most, that new ones are compared with
MAX_COLUMNS = 2000  # of a picture
KINDS = {
    "recorded": "Recorded",
    "original": "Its spectrogram, inverted",
    "generated": "Generated",
    "new": "New",
}  # fmt: skip; folders of SAMPLES, and what the page calls them


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
        title = make_printable(key.removesuffix(".npy"))[-32:]
        grid[0, column].set_title(title, fontsize=8, parse_math=False)
        grid[1, column].set_xlabel("seconds")
    for axes, name in zip(grid[:, 0], ("original", "generated"), strict=True):
        axes.set_ylabel(f"{name}, Hz")
    with warnings.catch_warnings():  # a name may have characters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_figure(path, figure, dpi=100)


class Prior:
    """A density over training pieces, to draw new ones from (ex-post, Ghosh et al. 2020).

    A Gaussian mixture over (latent, min, max): the latents in the principal components that hold
    PRIOR_VARIANCE of their variance, all of unit variance; the number of Gaussians and the form
    of their covariance have the highest held-out likelihood.

    Args:
        latents: float32 (n, latent_space_dim).
        ranges: float32 (n, 2), min and max in dB.
    Raises:
        ValueError: there are fewer than two pieces.
    """

    def __init__(self, latents, ranges, seed=SEED):
        from sklearn.decomposition import PCA
        from sklearn.mixture import GaussianMixture

        if len(latents) < 2:
            raise ValueError(
                f"a prior needs at least 2 training pieces, got {len(latents)}: name another "
                "--genre, or preprocess more audio and train again"
            )
        self._pca = PCA(PRIOR_VARIANCE, svd_solver="full", whiten=True).fit(latents)
        self._mean_range, self._deviation = ranges.mean(axis=0), ranges.std(axis=0) + 1e-3
        self._limits = ranges.min(axis=0), ranges.max(axis=0)
        self.mean = self._pca.mean_  # of the latents
        points = np.hstack([
            self._pca.transform(latents), (ranges - self._mean_range) / self._deviation
        ])  # fmt: skip
        self.n_components, self.covariance_type = choose_mixture(points, seed)
        self._mixture = GaussianMixture(
            self.n_components, covariance_type=self.covariance_type, reg_covar=PRIOR_MARGIN,
            random_state=seed,
        ).fit(points)  # fmt: skip

    def sample(self, count, temperature, rng):
        """Draw (latents float32 (count, latent_space_dim), ranges float32 (count, 2), dB).

        Args:
            temperature: factor on the deviations from the Gaussians' means, >= 0.
        """
        mixture = self._mixture
        chosen = rng.choice(self.n_components, count, p=mixture.weights_)
        noise = temperature * rng.standard_normal((count, mixture.means_.shape[1]))
        points = mixture.means_[chosen]
        for point, component, values in zip(points, chosen, noise, strict=True):
            # The factor of the precision is upper triangular; its inverse colours white noise.
            factor = mixture.precisions_cholesky_
            if self.covariance_type != "tied":
                factor = factor[component]
            point += np.linalg.solve(factor.T, values) if factor.ndim == 2 else values / factor
        latents = self._pca.inverse_transform(points[:, :-2])
        ranges = np.clip(points[:, -2:] * self._deviation + self._mean_range, *self._limits)
        return latents.astype(np.float32), ranges.astype(np.float32)

    def walk(self, n_windows, temperature, rng):
        """A smooth walk: the latents and ranges of n_windows windows, as sample() gives them.

        It goes from draw to draw in KEY_WINDOWS steps each, on an arc about the mean, so that
        points between two draws are as far from it as the draws are.
        """
        latents, ranges = self.sample(-(-n_windows // KEY_WINDOWS) + 1, temperature, rng)
        keys, steps = np.divmod(np.arange(n_windows), KEY_WINDOWS)
        share = (steps / KEY_WINDOWS)[:, np.newaxis]
        around = latents - self.mean
        walked = (
            np.cos(share * np.pi / 2) * around[keys] + np.sin(share * np.pi / 2) * around[keys + 1]
        )
        return (
            (walked + self.mean).astype(np.float32),
            ((1 - share) * ranges[keys] + share * ranges[keys + 1]).astype(np.float32),
        )


def choose_mixture(points, seed):
    """(number of Gaussians, covariance type) with the highest likelihood of points left out.

    A form of covariance is tried where there are as many points as a Gaussian of it needs.
    """
    from sklearn.mixture import GaussianMixture
    from sklearn.model_selection import KFold, cross_val_score

    if len(points) > PRIOR_POINTS:
        rng = np.random.default_rng(seed)
        points = points[rng.choice(len(points), PRIOR_POINTS, replace=False)]
    folds = KFold(min(PRIOR_FOLDS, len(points)), shuffle=True, random_state=seed)
    n_fitted = min(len(fitted) for fitted, _ in folds.split(points))
    n_dims = points.shape[1]
    scores = {}
    for count in PRIOR_COMPONENTS:
        needed = {"spherical": 4 * count, "diag": 4 * count, "tied": n_dims, "full": n_dims * count}
        for covariance_type, n_needed in needed.items():
            if n_fitted < max(n_needed, 4 * count):
                continue
            mixture = GaussianMixture(
                count, covariance_type=covariance_type, reg_covar=PRIOR_MARGIN, random_state=seed
            )
            scores[count, covariance_type] = cross_val_score(mixture, points, cv=folds).mean()
    return max(scores, key=scores.get, default=(1, "spherical"))


class TrainingPieces(NamedTuple):
    """What model/latents.npz tells of the pieces that the model learned from."""

    latents: np.ndarray  # float32 (n, latent_space_dim)
    ranges: np.ndarray  # float32 (n, 2), min and max in dB
    keys: list
    genres: np.ndarray  # str (n,), top folders

    def take(self, indices):
        """Some of the pieces."""
        keys = [self.keys[index] for index in indices]
        return TrainingPieces(
            self.latents[indices], self.ranges[indices], keys, self.genres[indices]
        )


def load_training_pieces(model_folder):
    """The TrainingPieces of a model folder.

    Raises:
        FileNotFoundError, ValueError: latents.npz is missing or damaged.
    """
    path = Path(model_folder) / "latents.npz"
    if not path.is_file():
        raise FileNotFoundError(f"no latents at {path}: run train.py again")
    try:
        arrays = load_arrays(path)
        ranges = np.stack([arrays["min"], arrays["max"]], axis=1).astype(np.float32)
        latents = arrays["latent"].astype(np.float32)
        pieces = TrainingPieces(latents, ranges, arrays["key"].tolist(), arrays["genre"])
        check_training_pieces(pieces)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: run train.py again ({error})") from error
    return pieces


def check_training_pieces(pieces):
    """Raise a ValueError unless there is a finite latent and range, and a key, of each piece."""
    n = len(pieces.latents)
    shapes = (pieces.latents.ndim, pieces.ranges.shape, np.shape(pieces.keys), pieces.genres.shape)
    texts = [*pieces.keys, *pieces.genres.tolist()]
    if shapes != (2, (n, 2), (n,), (n,)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"it has arrays of the shapes {shapes}")
    if not (np.isfinite(pieces.latents).all() and np.isfinite(pieces.ranges).all()):
        raise ValueError("it holds numbers that are not finite")
    for key in pieces.keys:
        dataset.check_key(key)


def choose_genre(pieces, genre):
    """The TrainingPieces of one genre, or all; ValueError that lists the near ones."""
    if genre is None:
        return pieces
    chosen = np.flatnonzero(pieces.genres == genre)
    if not len(chosen):
        raise ValueError(
            f"no genre is called {genre!r}: there is {list_near(genre, pieces.genres)}"
        )
    return pieces.take(chosen)


def list_near(name, names):
    """The names nearest to one, or the first few, for an error message."""
    names = sorted({*map(str, names)})
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:5])


class Studio:
    """Turns latents and songs of any length into sound with one model.

    Args:
        generator: a SoundGenerator with an autoencoder, for pieces of the settings' duration.
        settings: the features' Settings.
    """

    def __init__(self, generator, settings):
        self.generator = generator
        self.settings = settings
        n_samples = generator.n_samples
        self.n_frames = 1 + n_samples // settings.hop_length  # of a window
        self.hop = max(1, self.n_frames // 2)  # frames from window to window
        self.sample_rate = settings.sample_rate

    def decode(self, latents, ranges):
        """Yield the log spectrogram, float32 (n_bins, n_frames, n_channels) in dB, of each."""
        for start in range(0, len(latents), DECODE_BATCH):
            images = self.generator.autoencoder.decode(latents[start : start + DECODE_BATCH])
            for image, (low, high) in zip(images, ranges[start:], strict=False):
                yield self.generator.restore_log_spectrogram(image, {"min": low, "max": high})

    def join(self, windows, n_windows, n_samples):
        """Cross-fade windows, each self.hop frames after the last, and invert them once.

        Returns:
            (signal, log spectrogram in dB).
        """
        n_frames = 1 + n_samples // self.settings.hop_length
        log_spectrogram = join_windows(windows, n_windows, self.hop, n_frames)
        amplitude = self.generator.convert_to_amplitude(log_spectrogram)
        return self.generator.invert(amplitude, n_samples), log_spectrogram

    def count_windows(self, n_samples):
        """How many windows cover a signal."""
        n_frames = 1 + n_samples // self.settings.hop_length
        return 1 + max(0, -(-(n_frames - self.n_frames) // self.hop))

    def cut_windows(self, log_spectrogram, n_windows):
        """The windows that join() made one log spectrogram of; the last one padded."""
        length = (n_windows - 1) * self.hop + self.n_frames
        n_missing = max(0, length - log_spectrogram.shape[1])
        padded = np.pad(log_spectrogram, [(0, 0), (0, n_missing), (0, 0)], mode="edge")
        return [padded[:, index * self.hop :][:, : self.n_frames] for index in range(n_windows)]

    def reconstruct(self, signal):
        """A signal of any length through the autoencoder.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
        Returns:
            (signal, log spectrogram in dB, that of the signal given, the mean squared error of
            the normalised windows).
        """
        extractor = preprocess.LogSpectrogramExtractor(
            self.settings.frame_size, self.settings.hop_length, top_db=None
        )
        log_spectrogram = extractor.extract(signal)
        log_spectrogram = log_spectrogram.reshape(*log_spectrogram.shape[:2], -1)
        n_windows = self.count_windows(signal.shape[-1])
        errors = []

        def reconstruct_windows():
            for index in range(n_windows):
                start = index * self.hop
                window = log_spectrogram[:, start : start + self.n_frames]
                n_missing = self.n_frames - window.shape[1]
                window = np.pad(window, [(0, 0), (0, n_missing), (0, 0)], mode="constant",
                    constant_values=SILENT_DB)  # fmt: skip
                window = np.maximum(window, window.max() - self.settings.top_db)
                image = preprocess.MinMaxNormaliser(0, 1).normalise(window)
                autoencoder = self.generator.autoencoder
                image = preprocess.resize_spectrogram(image, autoencoder.input_shape[:2])
                (again,), _ = autoencoder.reconstruct(image[np.newaxis])
                errors.append(np.square(again - image).mean())
                min_max = {"min": window.min(), "max": window.max()}
                yield self.generator.restore_log_spectrogram(again, min_max)

        sound, reconstructed = self.join(reconstruct_windows(), n_windows, signal.shape[-1])
        return sound, reconstructed, log_spectrogram, float(np.mean(errors))


def join_windows(windows, n_windows, hop, n_frames):
    """Cross-fade overlapping log spectrograms into one, in decibels, so that no seam is left.

    Args:
        windows: n_windows of float32 (n_bins, n_window_frames, n_channels), dB, each `hop` frames
            after the one before; hop <= n_window_frames / 2, so that every frame but the first
            and last few is a mixture of two or more.
        n_frames: of the result.
    Returns:
        float32 (n_bins, n_frames, n_channels), dB.
    """
    total = weights = None
    for index, window in enumerate(windows):
        n_bins, n_window_frames, n_channels = window.shape
        if total is None:
            length = (n_windows - 1) * hop + n_window_frames
            total = np.zeros((n_bins, max(length, n_frames), n_channels), np.float32)
            weights = np.full(total.shape[1], np.finfo(np.float32).tiny, np.float32)
            fade = 1 - np.abs(np.linspace(-1, 1, n_window_frames + 2, dtype=np.float32)[1:-1])
        place = slice(index * hop, index * hop + n_window_frames)
        total[:, place] += fade[:, np.newaxis] * window
        weights[place] += fade
    total /= weights[:, np.newaxis]
    return total[:, :n_frames]


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


class Judge:
    """Tells how new and how good new pieces are, beside training pieces and held-out ones.

    Args:
        studio: a Studio.
        pieces: the TrainingPieces.
        saved_data: the folder with their spectrograms, and others that were held out.
        held_tracks: the audio paths of those, or None for all others.
    """

    def __init__(self, studio, pieces, saved_data, held_tracks=None):
        self.studio = studio
        self.spectrograms_path = Path(saved_data) / Path(SPECTROGRAMS_PATH).name
        keys = dataset.list_keys(self.spectrograms_path)
        self.min_max_values = dataset.load_min_max_values(dataset.get_min_max_path(saved_data))
        if held_tracks is None:
            held_tracks = {*map(dataset.get_track, {*keys} - {*pieces.keys})}
        keys = [key for key in keys if key in self.min_max_values]
        known = {*keys}
        there = [index for index, key in enumerate(pieces.keys) if key in known]
        if not there:
            raise ValueError("none of them is there")
        self.pieces = pieces = pieces.take(there)
        self.held_keys = choose_evenly([k for k in keys if dataset.get_track(k) in held_tracks])
        self.training_keys = choose_evenly(pieces.keys)
        self.mels = []  # of the new pieces so far
        self.typical = self._measure_typical()

    def judge(self, item):
        """The Item with its distances from the nearest training piece, beside the typical ones."""
        latents = np.atleast_2d(item.figures["latents"])
        found = []
        windows = self.studio.cut_windows(item.log_spectrograms["new"], len(latents))
        for latent, window in zip(latents, windows, strict=True):
            self.mels.append(extract_mel(window, self.studio.settings))
            found.append(self._find_nearest(latent, self.mels[-1]))
        key, _, mel = min(found, key=lambda entry: entry[2])
        return item._replace(figures={
            **item.figures,
            "nearest training piece": key,
            "latent distance to the nearest": min(entry[1] for entry in found),
            "typical latent distance between training pieces": self.typical[0],
            "mel distance to the nearest, dB": mel,
            "typical mel distance between training pieces, dB": self.typical[1],
        })  # fmt: skip

    def measure_sets(self):
        """Frechet distances in dB from the held-out pieces: of new pieces, and of three others.

        Returns:
            {"new pieces", "training pieces" (the floor), "mean spectrogram" and "noise" (the
            ceilings): dB}; empty where no piece is held out.
        """
        if not self.held_keys:
            return {}
        held = [self._load_mel(key) for key in self.held_keys]
        training = [self._load_mel(key) for key in self.training_keys]
        logs = (self._load_log_spectrogram(key) for key in self.training_keys)
        mean = extract_mel(sum(logs) / len(self.training_keys), self.studio.settings)
        settings, n_samples = self.studio.settings, self.studio.generator.n_samples
        signal = np.random.default_rng(0).standard_normal(n_samples).astype(np.float32)
        extractor = preprocess.LogSpectrogramExtractor(settings.frame_size, settings.hop_length)
        noise = extract_mel(extractor.extract(signal), settings)
        noise += mean.mean() - noise.mean()  # as loud as the music, in decibels
        sets = {
            "new pieces": self.mels, "training pieces": training, "mean spectrogram": [mean],
            "noise": [noise],
        }  # fmt: skip
        return {name: measure_frechet_distance(held, mels) for name, mels in sets.items()}

    def _load_log_spectrogram(self, key):
        image = dataset.load_spectrogram(self.spectrograms_path, key)
        low, high = self.min_max_values[key]["min"], self.min_max_values[key]["max"]
        return preprocess.MinMaxNormaliser(0, 1).denormalise(image, low, high)

    def _load_mel(self, key):
        return extract_mel(self._load_log_spectrogram(key), self.studio.settings)

    def _find_nearest(self, latent, mel, track=None):
        """(key, latent distance, mel distance in dB) of the nearest training piece.

        The mel distance is the smallest among the N_NEAR nearest latents; pieces of `track` are
        left out.
        """
        distances = np.linalg.norm(self.pieces.latents - latent, axis=1)
        nearest = [
            index for index in distances.argsort()
            if dataset.get_track(self.pieces.keys[index]) != track
        ][:N_NEAR]  # fmt: skip
        keys = [self.pieces.keys[index] for index in nearest]
        mels = [float(np.abs(self._load_mel(key) - mel).mean()) for key in keys]
        best = int(np.argmin(mels))
        return keys[best], float(distances[nearest[0]]), mels[best]

    def _measure_typical(self):
        """The median distances of training pieces to the nearest of other tracks, if any."""
        found = []
        tracks = [dataset.get_track(key) for key in self.pieces.keys]
        for key in self.training_keys if len({*tracks}) > 1 else []:
            latent = self.pieces.latents[self.pieces.keys.index(key)]
            nearest = self._find_nearest(latent, self._load_mel(key), dataset.get_track(key))
            found.append(nearest[1:])
        return np.median(found, axis=0).tolist() if found else (math.nan, math.nan)


def choose_evenly(keys):
    """At most MAX_JUDGED of the keys, evenly spaced."""
    count = min(MAX_JUDGED, len(keys))
    return [keys[index] for index in np.linspace(0, len(keys) - 1, count).astype(int)]


def extract_mel(log_spectrogram, settings):
    """Mel bands in dB of a log spectrogram, float32 (N_MELS, n_frames), channels mixed."""
    import librosa

    power = np.square(librosa.db_to_amplitude(log_spectrogram))
    power = power.reshape(*power.shape[:2], -1).mean(axis=2)
    bands = librosa.filters.mel(
        sr=settings.sample_rate, n_fft=settings.frame_size, n_mels=min(N_MELS, len(power) // 2)
    )
    return librosa.power_to_db(bands[:, :-1] @ power, top_db=settings.top_db)


def measure_frechet_distance(mels, others):
    """The Frechet distance of two sets' mel statistics, dB.

    Each set is a Gaussian over the means and deviations of its mel bands in POOLED_FRAMES frames.
    """
    from scipy.linalg import sqrtm

    statistics = []
    for chosen in (mels, others):
        vectors = []
        for mel in chosen:
            n_pools = max(1, mel.shape[1] // POOLED_FRAMES)
            pools = np.array_split(mel, n_pools, axis=1)
            vectors += [np.concatenate([p.mean(axis=1), p.std(axis=1)]) for p in pools]
        vectors = np.array(vectors, np.float64)
        covariance = np.cov(vectors.T) if len(vectors) > 1 else np.zeros((vectors.shape[1],) * 2)
        statistics.append((vectors.mean(axis=0), covariance))
    (mean, covariance), (other_mean, other) = statistics
    square = np.square(mean - other_mean).sum()
    square += np.trace(covariance + other - 2 * sqrtm(covariance @ other).real)
    return float(np.sqrt(max(square, 0)))


def draw_picture(path, log_spectrogram, settings):
    """Write a log spectrogram as PNG, with axes in seconds and Hz."""
    from matplotlib.figure import Figure

    n_columns = log_spectrogram.shape[1]
    step = -(-n_columns // MAX_COLUMNS)  # a long piece has more frames than the picture has pixels
    image = log_spectrogram[:, ::step].mean(axis=2)
    duration = n_columns * settings.hop_length / settings.sample_rate
    figure = Figure(figsize=(4.6, 2.6), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(
        image, origin="lower", aspect="auto", extent=(0, duration, 0, settings.sample_rate / 2),
        vmin=image.max() - settings.top_db, vmax=image.max(), cmap="magma", interpolation="nearest",
    )  # fmt: skip
    axes.set(xlabel="seconds", ylabel="Hz")
    figure.colorbar(shown, label="dB")
    write_figure(path, figure, dpi=100)


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


def format_figures(figures):
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in figures.items()
    }


def write_page(samples, entries, summary):
    """Write index.html, which needs nothing but the files beside it."""
    import jinja2

    template = Path(__file__).with_name("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(entries=entries, summary=summary)
    write_atomically(samples / "index.html", page.encode("utf-8", "replace"))


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
    loader = preprocess.Loader(settings.sample_rate, settings.duration, settings.mono)
    generator = SoundGenerator(
        Autoencoder.load(options.model), settings.hop_length, frame_size=settings.frame_size,
        n_samples=loader.n_samples, seed=options.seed,
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
    from train import load_split

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
