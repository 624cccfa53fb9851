"""How near sounds are to each other, and whether new pieces are replays, and music at all.

In:  signals; new pieces, the training pieces, and those held out.
Out: distances in dB; where training audio comes nearest; distances of sets.

    distance = measure_mel_distance(recorded, generated, sample_rate=22050)
    item = Evaluator(sound_generator, pieces, held_out).compare(item)
"""

import functools

import librosa
import numpy as np
import scipy.fft
import scipy.signal

from support import dataset
from support.bands import FRAMES_PER_STEP, extract_bands
from support.command_line import show_progress

N_MELS = 80  # bands
MEL_FRAME_SIZE = 1024  # samples
MEL_HOP_LENGTH = 256  # samples
MEL_TOP_DB = 80.0  # dB under the reference's peak, the floor of both
POOLED_FRAMES = 8  # that a mel statistic is taken over
REPLAY = 0.22  # similarity to training audio above which a window is called a replay of it
SEARCH_BLOCK = 4096  # steps of training audio, transformed together
SEARCH_BATCH = 8  # excerpts that are searched for together
MIN_ENERGY = 1e-3  # of the changes of an excerpt that is not silent
MAX_COMPARED = 200  # training and held-out pieces, at most, in sets
MOTION_S = 10.0  # seconds of a piece that is long enough to ask how it moves
PULSE_S = 20.0  # seconds whose spectra are averaged, to find a pulse
RANGE = (5, 95)  # percentiles of what training tracks do
MIN_SET = 3  # pieces that a set needs for its distance to have a spread


def measure_spectral_convergence(amplitude, signal, frame_size, hop_length):
    """20 log10(||S - |STFT(y)||| / ||S||) in dB, lower is better; -inf for silence kept silent.

    Args:
        amplitude: float32 (n_channels, frame_size / 2 + 1, n_frames).
        signal: float32 (n_samples,) or (n_channels, n_samples).
    """
    stft = librosa.stft(np.atleast_2d(signal), n_fft=frame_size, hop_length=hop_length)
    error = np.linalg.norm(amplitude - np.abs(stft))
    if error == 0:
        return -np.inf
    return float(20 * np.log10(error / max(np.linalg.norm(amplitude), np.finfo(np.float32).tiny)))


def measure_mel_distance(reference, signal, sample_rate, pooled_frames=1):
    """Mean absolute difference in dB of two signals' log mel spectrograms.

    Both are float32 (n_samples,) or (n_channels, n_samples), of one length; the floor of both
    lies MEL_TOP_DB under the reference's peak.

    Args:
        pooled_frames: whose power is averaged first, so that the scatter of noise counts less.
    """
    reference_mel, mel = (
        librosa.power_to_db(
            pool_frames(
                librosa.feature.melspectrogram(
                    y=np.atleast_2d(y),
                    sr=sample_rate,
                    n_fft=MEL_FRAME_SIZE,
                    hop_length=MEL_HOP_LENGTH,
                    n_mels=N_MELS,
                ),
                pooled_frames,
            ),
            top_db=None,
        )
        for y in (reference, signal)
    )
    floor = reference_mel.max() - MEL_TOP_DB
    return float(np.abs(np.maximum(reference_mel, floor) - np.maximum(mel, floor)).mean())


def pool_frames(mel, count):
    """The means of each `count` frames, (..., n_frames / count); fewer at the end."""
    starts = np.arange(0, mel.shape[-1], count)
    widths = np.diff([*starts, mel.shape[-1]])
    return np.add.reduceat(mel, starts, axis=-1) / widths


class Evaluator:
    """Tells whether new pieces replay training audio, and how near they are to held-out music.

    Args:
        sound_generator: the SoundGenerator that makes them.
        pieces: the TrainingPieces of its model.
        held_out: float32 (n, height, width, n_channels), in [0, 1]: images of pieces that were
            not trained on, of the genre asked for.
    """

    def __init__(self, sound_generator, pieces, held_out):
        self.sound_generator = sound_generator
        self.held_out = held_out
        self._pieces = pieces._replace(latents=None)  # an hour of music needs the memory
        self._search = ReplaySearch(pieces.bands)
        self._bands = []  # of the windows of the new pieces so far

    def compare(self, item):
        """The Item with the place in the training audio that it is most similar to.

        Every window of its sound is compared with every moment of every track.
        """
        generator = self.sound_generator
        n_windows = generator.count_windows(item.sounds["new"].shape[-1])
        windows = show_progress(
            generator.cut_windows(item.sounds["new"]), n_windows, "comparing windows"
        )
        excerpts, moments = [], []
        for index, window in enumerate(windows):
            image, min_max = generator.make_image(window)
            (bands,) = extract_bands(image[np.newaxis], generator.sample_rate)
            excerpts.append(bands)
            if index % 2 == 0:  # windows overlap by half
                moments.append(to_decibels(bands, [min_max["min"], min_max["max"]]))
        self._bands += excerpts
        similarities, steps = self._search.find(np.array(excerpts))
        n_replays, best = int((similarities > REPLAY).sum()), similarities.argmax()
        place, best = steps[best], float(similarities[best])
        index, step = divmod(place, self._pieces.bands.shape[1])
        key = self._pieces.keys[index]
        seconds = dataset.get_segment(key) * self._piece_s + step * self._step_s
        figures = {
            **item.figures,
            "nearest training audio": f"{dataset.get_track(key)} at {seconds:.1f} s",
            f"similarity to it (a copy: above {REPLAY})": best,
            "copies of training audio": f"{n_replays} of {n_windows} windows",
        }
        if n_windows * self._piece_s / 2 >= MOTION_S:
            for name, value in self._measure_motion(moments).items():
                if self._motions:
                    low, high = np.percentile([each[name] for each in self._motions], RANGE)
                    name = f"{name} (training tracks: {low:.2g} to {high:.2g})"
                figures[name] = value
        return item._replace(figures=figures)

    @functools.cached_property
    def _motions(self):
        """measure_motion() of the training tracks that last MOTION_S or longer."""
        pieces = self._pieces
        names = np.array([dataset.get_track(key) for key in pieces.keys])
        starts = np.flatnonzero(names[1:] != names[:-1]) + 1
        tracks = np.split(np.arange(len(names)), starts)
        long = [track for track in tracks if len(track) * self._piece_s >= MOTION_S]
        motions = []
        for track in (long[index] for index in (choose_evenly(len(long)) if long else ())):
            moments = to_decibels(pieces.bands[track] / 255, pieces.ranges[track])
            motions.append(self._measure_motion(moments))
        return motions

    def _measure_motion(self, moments):
        """measure_motion() of pieces that follow each other, (n_steps, n_bands) each, dB."""
        return measure_motion(np.concatenate(moments), self._step_s, self._piece_s / 2)

    @property
    def _step_s(self):
        """Seconds of a step of bands."""
        generator = self.sound_generator
        return FRAMES_PER_STEP * generator.hop_length / generator.sample_rate

    @property
    def _piece_s(self):
        """Seconds of a piece, and of a window."""
        return self.sound_generator.n_samples / self.sound_generator.sample_rate

    def measure_sets(self):
        """Kernel distances from the held-out pieces, each with its spread.

        Returns:
            {"new pieces", "reconstructions" of the held-out pieces (what the model can reach),
            "training pieces" (the floor), "noise" (the ceiling): (distance, spread)}; empty if
            there are fewer than MIN_SET pieces of either kind.
        """
        if min(len(self.held_out), len(self._bands)) < MIN_SET:
            return {}
        generator = self.sound_generator
        reconstructed, _ = generator.autoencoder.reconstruct(self.held_out)
        nominal = {"min": -generator.top_db, "max": 0.0}  # dB
        log_spectrograms = (
            generator.add_texture(generator.restore_log_spectrogram(image, nominal))
            for image in reconstructed
        )
        rng = np.random.default_rng(0)
        noise = (
            next(generator.cut_windows(rng.standard_normal(generator.n_samples, np.float32)))
            for _ in self.held_out
        )
        sets = {
            "new pieces": np.array(self._bands),
            "reconstructions": self._extract_bands(log_spectrograms),
            "training pieces": self._pieces.bands[choose_evenly(len(self._pieces.bands))] / 255,
            "noise": self._extract_bands(noise),
        }
        reference = extract_bands(self.held_out, generator.sample_rate)
        return measure_kernel_distances(reference, sets)

    def _extract_bands(self, log_spectrograms):
        images = (self.sound_generator.make_image(each)[0] for each in log_spectrograms)
        sample_rate = self.sound_generator.sample_rate
        return np.concatenate([extract_bands(each[np.newaxis], sample_rate) for each in images])


def to_decibels(bands, ranges):
    """Bands in [0, 1], (..., n_steps, n_bands), in decibels; ranges are (min, max), (..., 2)."""
    low, high = np.moveaxis(np.asarray(ranges)[..., np.newaxis, np.newaxis], -3, 0)
    return low + bands * (high - low)


def measure_motion(bands, step_s, window_s):
    """How a long piece moves.

    Args:
        bands: (n_steps, n_bands), dB, one step after the other.
        step_s: seconds of a step.
        window_s: seconds from one window to the next of which the piece may be made.
    Returns:
        {"level swing, dB": the standard deviation of the level of half seconds,
        "flux, dB": the mean change of a band from step to step,
        "pulse at the windows' rate": the power of the level's changes at that rate, over the
        median of the rates around it}.
    """
    powers = 10 ** (np.asarray(bands, np.float64) / 10)
    level = librosa.power_to_db(powers.mean(axis=1), top_db=None)
    pooled = pool_frames(powers.mean(axis=1), max(1, round(0.5 / step_s)))
    length = min(len(level), round(PULSE_S / step_s))
    rates, spectrum = scipy.signal.welch(level, 1 / step_s, nperseg=length)
    nearest = np.abs(rates - 1 / window_s).argmin()
    around = np.abs(np.arange(len(rates)) - nearest)
    line = spectrum[around <= 1].max() / max(np.median(spectrum[(around > 2) & (around < 9)]), 1e-9)
    return {
        "level swing, dB": float(librosa.power_to_db(pooled, top_db=None).std()),
        "flux, dB": float(np.abs(np.diff(bands, axis=0)).mean()),
        "pulse at the windows' rate": float(line),
    }


def choose_evenly(count):
    """At most MAX_COMPARED indices of count, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, MAX_COMPARED).astype(int))


def measure_kernel_distances(reference, sets):
    """How far sets of pieces are from a reference set, whatever their sizes.

    The squared maximum mean discrepancy, unbiased, times 100 (Gretton et al. 2012), of each
    band's mean, deviation and mean change, with a Gaussian kernel as wide as the median distance
    within the reference: about 0 if both are draws of one distribution.

    Args:
        reference: bands (n, n_steps, n_bands), n >= MIN_SET.
        sets: {name: the same of other pieces}.
    Returns:
        {name: (distance, its standard error by the jackknife)}.
    """
    summaries = {name: summarise(bands) for name, bands in sets.items()}
    points = summarise(reference)
    scale = np.maximum(points.std(axis=0), 1e-6)
    points = points / scale
    squares = measure_squares(points, points)
    width = np.median(squares[np.triu_indices(len(points), 1)]) or 1.0
    inner = np.exp(-squares / (2 * width))
    distances = {}
    for name, others in summaries.items():
        others = others / scale
        kernels = (
            inner,
            *(np.exp(-measure_squares(others, ends) / (2 * width)) for ends in (others, points)),
        )
        distances[name] = estimate_discrepancy(*kernels)
    return distances


def summarise(bands):
    """Means, deviations and mean changes of bands, float64 (n, 3 * n_bands)."""
    bands = bands.astype(np.float64)
    changes = np.abs(np.diff(bands, axis=1)).mean(axis=1) if bands.shape[1] > 1 else 0 * bands[:, 0]
    return np.concatenate([bands.mean(axis=1), bands.std(axis=1), changes], axis=1)


def measure_squares(points, others):
    """Squared distances between all points, (n, d), and all others, (m, d): (n, m)."""
    products = points @ others.T
    squares = np.square(points).sum(axis=1)[:, np.newaxis] + np.square(others).sum(axis=1)
    return np.maximum(squares - 2 * products, 0)


def estimate_discrepancy(inner, other_inner, outer):
    """100 times the unbiased squared discrepancy, and its standard error by the jackknife.

    Args:
        inner, other_inner, outer: kernels (n, n), (m, m) and (m, n).
    """
    sums, other_sums = (kernel.sum(axis=1) - np.diag(kernel) for kernel in (inner, other_inner))
    n, m = len(sums), len(other_sums)
    within = sums.sum() / (n * (n - 1))
    other_within = other_sums.sum() / (m * (m - 1))
    between = outer.sum() / (n * m)
    without = (sums.sum() - 2 * sums) / ((n - 1) * (n - 2)) + other_within
    without -= 2 * (outer.sum() - outer.sum(axis=0)) / ((n - 1) * m)
    other_without = (other_sums.sum() - 2 * other_sums) / ((m - 1) * (m - 2)) + within
    other_without -= 2 * (outer.sum() - outer.sum(axis=1)) / (n * (m - 1))
    variance = (n - 1) * without.var() + (m - 1) * other_without.var()
    return float(100 * (within + other_within - 2 * between)), float(100 * np.sqrt(variance))


class ReplaySearch:
    """Finds where an excerpt is most similar to training audio, at any offset.

    What is compared is how the slopes from mel band to mel band change from step to step: that
    of other music is nearly uncorrelated, while a copy, even blurred or at another level, is not.

    Args:
        bands: (n_pieces, n_steps, n_bands), those of a track one after the other.
    """

    def __init__(self, bands):
        self._length = bands.shape[1] - 1  # changes of an excerpt
        self._hop = SEARCH_BLOCK - self._length + 1
        moments = bands.reshape(-1, bands.shape[-1])
        n_starts = len(moments) - self._length
        # Overlapping blocks, whose products with an excerpt's spectrum are summed over the bands
        # before they go back in time: one inverse transform in place of one for each band.
        n_blocks = -(-n_starts // self._hop)
        shape = SEARCH_BLOCK // 2 + 1, n_blocks, bands.shape[-1] - 1
        self._spectra = np.empty(shape, np.complex64)
        energy = np.zeros(len(moments))  # of all changes before each moment
        for index in range(n_blocks):
            start = index * self._hop
            changes = measure_changes(moments[start : start + SEARCH_BLOCK + 1])
            self._spectra[:, index] = scipy.fft.rfft(changes, SEARCH_BLOCK, axis=0)
            sums = np.square(changes).sum(axis=1, dtype=np.float64).cumsum()
            energy[start + 1 : start + 1 + len(sums)] = energy[start] + sums
        self._energy = energy[self._length :] - energy[: -self._length]  # from each moment on

    def find(self, excerpts):
        """Where each of some excerpts is most similar.

        Args:
            excerpts: (n, n_steps, n_bands), of as many steps as a piece.
        Returns:
            (similarities (n,) in [-1, 1], 0 for silence; steps (n,) at which that audio starts).
        """
        found = []
        for start in range(0, len(excerpts), SEARCH_BATCH):
            changes = measure_changes(excerpts[start : start + SEARCH_BATCH])  # (n, time, bands)
            spectra = scipy.fft.rfft(changes, SEARCH_BLOCK, axis=1).conj()
            products = self._spectra @ spectra.transpose(1, 2, 0)  # (n_rates, n_blocks, n)
            products = scipy.fft.irfft(products, SEARCH_BLOCK, axis=0)[: self._hop]
            products = products.transpose(2, 1, 0).reshape(len(changes), -1)
            norms = np.maximum(np.linalg.norm(changes, axis=(1, 2)), MIN_ENERGY)
            products = products[:, : len(self._energy)] / norms[:, np.newaxis]
            similarities = products / np.sqrt(np.maximum(self._energy, MIN_ENERGY))
            steps = similarities.argmax(axis=1)
            found += zip(similarities[np.arange(len(steps)), steps], steps, strict=True)
        similarities, steps = zip(*found, strict=True)
        return np.array(similarities), np.array(steps)


def measure_changes(bands):
    """Changes from step to step of slopes from band to band, (..., n_steps - 1, n_bands - 1)."""
    return np.diff(np.diff(bands.astype(np.float32), axis=-1), axis=-2)
