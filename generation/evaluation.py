"""How near sounds are to each other, and whether new pieces are replays, and music at all.

In:  signals; new pieces, the training tracks, and pieces held out.
Out: distances in dB; where training audio comes nearest; distances of sets.

    distance = measure_mel_distance(recorded, generated, sample_rate=22050)
    item = Evaluator(sound_generator, tracks, held_out).compare(item)
"""

import functools

import librosa
import numpy as np
import scipy.fft

from support.bands import FRAMES_PER_STEP, extract_bands

N_MELS = 80  # bands
MEL_FRAME_SIZE = 1024  # samples
MEL_HOP_LENGTH = 256  # samples
MEL_TOP_DB = 80.0  # dB under the reference's peak, the floor of both
POOLED_FRAMES = 8  # that a mel statistic is taken over
REPLAY = 0.22  # similarity to training audio above which an excerpt is called a replay of it
SEARCH_BLOCK = 4096  # steps of training audio, transformed together
SEARCH_BATCH = 8  # excerpts that are searched for together
MIN_ENERGY = 1e-3  # of the changes of an excerpt that is not silent
MAX_COMPARED = 200  # training and held-out excerpts, at most, in sets
MOTION_S = 10.0  # seconds of a piece that is long enough to ask how it moves
SWING_S = 0.5  # seconds whose level is one
RANGE = (5, 95)  # percentiles of what training tracks do
MIN_SET = 3  # pieces that a set needs, at least


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
        tracks: the TrainingTracks of its model.
        held_out: normalised spectrograms of pieces that were not trained on, of the genre asked
            for.
    """

    def __init__(self, sound_generator, tracks, held_out):
        self.sound_generator = sound_generator
        self.held_out = held_out
        self._tracks = tracks._replace(latents=None)  # an hour of music needs the memory
        width = sound_generator.autoencoder.input_shape[1]
        self._length = -(-width // FRAMES_PER_STEP)  # steps of an excerpt, which is a piece
        self._step_s = sound_generator.n_samples / sound_generator.sample_rate / self._length
        self._search = ReplaySearch(tracks.bands, self._length)
        self._excerpts = []  # of the new pieces so far

    def compare(self, item):
        """The Item with the place in the training audio that it is most similar to.

        Excerpts that overlap by half are compared with every moment of every track.
        """
        bands, peak = self._hear(item.sounds["new"])
        excerpts = cut_excerpts(bands, self._length)
        self._excerpts += [*excerpts]
        similarities, steps = self._search.find(excerpts)
        n_replays, best = int((similarities > REPLAY).sum()), similarities.argmax()
        ends = np.cumsum(self._tracks.n_band_steps)
        track = np.searchsorted(ends, steps[best], side="right")
        start = ends[track] - self._tracks.n_band_steps[track]
        seconds = (steps[best] - start) * self._step_s
        figures = {
            **item.figures,
            "nearest training audio": f"{self._tracks.tracks[track]} at {seconds:.1f} s",
            f"similarity to it (a copy: above {REPLAY})": float(similarities[best]),
            "copies of training audio": f"{n_replays} of {len(excerpts)} excerpts",
        }
        if len(bands) * self._step_s >= MOTION_S:
            for name, value in self._measure_motion(bands, peak).items():
                if self._motions:
                    low, high = np.percentile([each[name] for each in self._motions], RANGE)
                    name = f"{name} (training tracks: {low:.2g} to {high:.2g})"
                figures[name] = value
        return item._replace(figures=figures)

    def _hear(self, signal):
        """(bands of a sound, its peak in dB)."""
        generator = self.sound_generator
        plan, cut, min_max = generator.view(signal)
        parts = [
            extract_bands(cut(start, stop), generator.sample_rate) for _, start, stop, _ in plan
        ]
        n_steps = round(signal.shape[-1] / generator.sample_rate / self._step_s)
        return np.concatenate(parts)[: max(1, n_steps)], min_max["max"]

    @functools.cached_property
    def _motions(self):
        """measure_motion() of the training tracks that last MOTION_S or longer."""
        tracks = self._tracks
        parts = np.split(tracks.bands, np.cumsum(tracks.n_band_steps)[:-1])
        long = [
            (bands / 255, peak)
            for bands, peak in zip(parts, tracks.peaks, strict=True)
            if len(bands) * self._step_s >= MOTION_S
        ]
        chosen = choose_evenly(len(long)) if long else ()
        return [self._measure_motion(*long[index]) for index in chosen]

    def _measure_motion(self, bands, peak):
        top_db = self.sound_generator.top_db
        return measure_motion(peak - top_db * (1 - bands), self._step_s)

    def measure_sets(self):
        """Kernel distances from the held-out pieces.

        Returns:
            {"new pieces", "reconstructions" of the held-out pieces (what the model can reach),
            "training pieces" (the floor), "noise" (the ceiling): distance}; empty if there are
            fewer than MIN_SET pieces of either kind.
        """
        if min(len(self.held_out), len(self._excerpts)) < MIN_SET:
            return {}
        generator = self.sound_generator
        nominal = {"min": -generator.top_db, "max": 0.0}  # dB
        images, ranges = generator.fit_images(self.held_out, [nominal] * len(self.held_out))
        reconstructed, _ = generator.autoencoder.reconstruct(images)
        log_spectrograms = (
            generator.add_texture(generator.restore_log_spectrogram(image, nominal))
            for image in reconstructed
        )
        textured, _ = generator.fit_images(
            [(each + generator.top_db) / generator.top_db for each in log_spectrograms], ranges
        )
        rng = np.random.default_rng(0)
        noise = (rng.standard_normal(generator.n_samples, np.float32) for _ in self.held_out)
        starts = choose_evenly(max(1, len(self._tracks.bands) - self._length))
        sets = {
            "new pieces": np.array(self._excerpts),
            "reconstructions": self._extract_all(textured),
            "training pieces": np.array(
                [self._tracks.bands[start : start + self._length] / 255 for start in starts]
            ),
            "noise": np.array([self._hear(each)[0][: self._length] for each in noise]),
        }
        return measure_kernel_distances(self._extract_all(images), sets)

    def _extract_all(self, images):
        return np.array([extract_bands(each, self.sound_generator.sample_rate) for each in images])


def cut_excerpts(bands, length):
    """Excerpts of some steps that overlap by half, (n, length, n_bands); short bands end in 0."""
    if len(bands) < length:
        bands = np.pad(bands, [(0, length - len(bands)), (0, 0)])
    starts = range(0, len(bands) - length + 1, max(1, length // 2))
    return np.array([bands[start : start + length] for start in starts])


def measure_motion(bands, step_s):
    """How a long piece moves.

    Args:
        bands: (n_steps, n_bands), dB.
        step_s: seconds of a step.
    Returns:
        {"level swing, dB": the standard deviation of the level of half seconds,
        "flux, dB": the mean change of a band from step to step}.
    """
    powers = 10 ** (np.asarray(bands, np.float64) / 10)
    pooled = pool_frames(powers.mean(axis=1), max(1, round(SWING_S / step_s)))
    return {
        "level swing, dB": float(librosa.power_to_db(pooled, top_db=None).std()),
        "flux, dB": float(np.abs(np.diff(bands, axis=0)).mean()),
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
        {name: distance}.
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
    """100 times the unbiased squared discrepancy of kernels (n, n), (m, m) and (m, n)."""
    within = sum(
        (kernel.sum() - np.trace(kernel)) / (len(kernel) * (len(kernel) - 1))
        for kernel in (inner, other_inner)
    )
    return float(100 * (within - 2 * outer.mean()))


class ReplaySearch:
    """Finds where an excerpt is most similar to training audio, at any offset.

    What is compared is how the slopes from mel band to mel band change from step to step: that
    of other music is nearly uncorrelated, while a copy, even blurred or at another level, is not.

    Args:
        moments: bands (n_steps, n_bands), one track after the other.
        length: steps of an excerpt.
    """

    def __init__(self, moments, length):
        if len(moments) < length:
            moments = np.pad(moments, [(0, length - len(moments)), (0, 0)])
        self._length = length - 1  # changes of an excerpt
        self._hop = SEARCH_BLOCK - self._length + 1
        n_starts = len(moments) - self._length
        # Overlapping blocks, whose products with an excerpt's spectrum are summed over the bands
        # before they go back in time: one inverse transform in place of one for each band.
        n_blocks = -(-n_starts // self._hop)
        shape = SEARCH_BLOCK // 2 + 1, n_blocks, moments.shape[-1] - 1
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
            excerpts: (n, length, n_bands).
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
