"""How near sounds are to each other, and whether new pieces are replays, and music at all.

In:  signals; new pieces, the training tracks, and pieces held out.
Out: distances in dB; where training audio comes nearest; distances of sets.

    distance = measure_mel_distance(recorded, generated, sample_rate=22050)
    item = Evaluator(sound_generator, tracks, held_out).compare(item)
"""

import sys

import librosa
import numpy as np
import scipy.fft
from scipy.spatial.distance import cdist

from generation.sources import say
from support import dataset
from support.bands import FRAMES_PER_BAND_STEP, extract_bands, pool_frames
from support.errors import UserError
from support.tracks import TrainingTracks

N_MELS = 80  # bands
MEL_FRAME_SIZE = 1024  # samples
MEL_HOP_LENGTH = 256  # samples
MEL_TOP_DB = 80.0  # dB under the reference's peak, the floor of both
POOLED_FRAMES = 8  # that a mel statistic is taken over
REPLAY = 0.22  # similarity to training audio above which REPLAY_STEPS are called a replay of it
REPLAY_STEPS = 64  # those of 2.97 s; of fewer, other music is more alike by chance
SEARCH_BLOCK = 4096  # steps of training audio, transformed together
SEARCH_BATCH = 8  # excerpts that are searched for together
MIN_ENERGY = 1e-3  # of the changes of an excerpt that is not silent
MAX_COMPARED = 200  # training and held-out excerpts, at most, in sets
SAME_PEAK = 0.01  # dB
VERBATIM = 0.25  # correlation above which VERBATIM_S seconds go as training audio does: of nine in
VERBATIM_S = 1.5  # ten copies through the model, and of one in fifty excerpts of other music
FORM_S = 20.0  # seconds of a piece that is long enough to have a form
MIN_SET = 3  # pieces that a set needs, at least
NEAREST = 5  # neighbours of a piece


def measure_spectral_convergence(amplitude, signal, frame_size, hop_length):
    """20 log10(||S - |STFT(y)||| / ||S||) in dB, lower is better; -inf for silence kept silent.

    Args:
        amplitude: float32 (n_channels, frame_size / 2 + 1, n_frames).
        signal: float32 (n_samples,) or (n_channels, n_samples).
    """
    stft = librosa.stft(np.atleast_2d(signal), n_fft=frame_size, hop_length=hop_length)
    edge = -(-frame_size // (2 * hop_length))  # frames, which see what lies beyond the signal
    inside = slice(edge, -edge) if stft.shape[-1] > 2 * edge else slice(None)
    amplitude, stft = amplitude[..., inside], stft[..., inside]
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


class Evaluator:
    """Tells whether new pieces replay training audio, and how near they are to other music.

    Args:
        held_out: normalised spectrograms of pieces that were not trained on.
        genre: that the pieces and the held-out ones are of, and the floor is to be; None: all.
    """

    def __init__(self, sound_generator, tracks, held_out, genre=None):
        self.sound_generator = sound_generator
        self.held_out = held_out
        self._tracks = tracks
        own = np.split(tracks.bands, np.cumsum(tracks.n_steps)[:-1])
        is_like = tracks.genres == genre if genre is not None else np.ones(len(own), bool)
        self._floor = [bands for bands, like in zip(own, is_like, strict=True) if like]
        width = sound_generator.autoencoder.input_shape[1]
        self._length = -(-width // FRAMES_PER_BAND_STEP)  # steps of an excerpt, which is a piece
        self._step_s = sound_generator.n_samples / sound_generator.sample_rate / self._length
        self._replay = REPLAY * np.sqrt(REPLAY_STEPS / self._length)
        self._form_length = round(FORM_S / self._step_s)  # of one that has a form
        self._search = ReplaySearch(tracks.bands, self._length)
        self._excerpts, self._long_excerpts = [], []  # of the new pieces so far

    def compare(self, item):
        """The Item with where each second of it comes nearest to the training audio."""
        bands = self._hear(item.sounds["new"])
        hop = max(1, round(1 / self._step_s))  # a second
        self._excerpts += [*cut_excerpts(bands, self._length, self._length)]
        excerpts = cut_excerpts(bands, self._length, hop)
        similarities, steps = self._search.find(excerpts)
        ends = np.cumsum(self._tracks.n_steps)
        tracks = np.searchsorted(ends, steps, side="right")
        places = (steps - ends[tracks] + self._tracks.n_steps[tracks]) * self._step_s
        origins = [
            [str(self._tracks.tracks[track]), round(float(place), 1), round(float(similarity), 3)]
            for track, place, similarity in zip(tracks, places, similarities, strict=True)
        ]
        name, place, similarity = origins[similarities.argmax()]
        n_copies = (similarities > self._replay).sum()
        figures = {
            **item.figures,
            "nearest training audio": f"{name} at {place} s",
            f"similarity to it (a copy: above {self._replay:.2g})": similarity,
            "copies of training audio": f"{n_copies} of {len(steps)} excerpts",
            "longest verbatim run, s": self._measure_run(bands, steps, hop) * self._step_s,
        }
        if len(bands) >= self._form_length:
            self._long_excerpts += [*cut_excerpts(bands, self._form_length, self._form_length)]
        return item._replace(figures=figures, origins=origins)

    def _measure_run(self, bands, places, hop):
        """Steps of the longest run in which bands go as the training audio does at some places,
        one for each excerpt; those that follow each other there belong together."""
        window, longest = max(1, round(VERBATIM_S / self._step_s)), 0
        offsets = np.array(places) - hop * np.arange(len(places))
        for offset in np.unique(offsets):
            (indices,) = np.nonzero(offsets == offset)
            start, stop = hop * indices[0], hop * indices[-1] + self._length
            others = self._tracks.bands[offset + start : offset + stop]
            longest = max(longest, measure_run(bands[start:stop], others, window))
        return longest

    def _hear(self, signal):
        """The bands of a sound."""
        generator = self.sound_generator
        plan, cut, _ = generator.view(signal)
        parts = [
            extract_bands(cut(start, stop), generator.sample_rate) for _, start, stop, _ in plan
        ]
        n_steps = round(signal.shape[-1] / generator.sample_rate / self._step_s)
        return np.concatenate(parts)[: max(1, n_steps)]

    def measure_sets(self):
        """How near the new pieces are to music, each figure beside what it is to be compared with.

        Returns:
            {name: value}, without figures for which there are fewer than MIN_SET pieces.
        """
        figures = {}
        if min(len(self.held_out), len(self._excerpts)) >= MIN_SET:
            reference, sets = self._collect_sets()
            for name, points in sets.items():
                distance = measure_kernel_distance(reference, points)
                figures[f"kernel distance from held-out pieces, {name}"] = distance
            for name, points in sets.items():
                figures[f"share of held-out pieces near {name}"] = measure_coverage(
                    reference, points
                )
        length = self._form_length
        forms = [
            summarise_form(cut_excerpts(bands / 255, length, length), self._length)
            for bands in self._floor
            if len(bands) >= length
        ]
        halves = [np.concatenate(forms[i::2]) if forms[i::2] else () for i in range(2)]
        if min(*map(len, halves), len(self._long_excerpts)) >= MIN_SET:
            new = summarise_form(np.array(self._long_excerpts), self._length)
            for name, points in (("new pieces", new), ("other training tracks", halves[1])):
                distance = measure_kernel_distance(halves[0], points)
                figures[f"kernel distance of {FORM_S:g} s from training tracks, {name}"] = distance
        return figures

    def _collect_sets(self):
        """Summaries of the held-out pieces, and {name: those of others}: new pieces,
        reconstructions of the held-out pieces (what the model can reach), training pieces (the
        floor) and noise (the ceiling)."""
        generator = self.sound_generator
        nominal = {"min": -generator.top_db, "max": 0.0}  # dB
        images, _ = generator.fit_images(self.held_out, [nominal] * len(self.held_out))
        reconstructed, _ = generator.autoencoder.reconstruct(images)
        rng = np.random.default_rng(0)
        noise = (rng.standard_normal(generator.n_samples, np.float32) for _ in self.held_out)
        floor = np.concatenate(self._floor)
        starts = choose_evenly(max(1, len(floor) - self._length))
        pieces = [floor[start : start + self._length] / 255 for start in starts]
        sets = {
            "new pieces": self._excerpts,
            "reconstructions": self._extract_all(map(generator.add_detail, reconstructed)),
            "training pieces": pieces,
            "noise": [self._hear(each)[: self._length] for each in noise],
        }
        sets = {name: summarise(np.array(bands)) for name, bands in sets.items()}
        return summarise(self._extract_all(images)), sets

    def _extract_all(self, images):
        return np.array([extract_bands(each, self.sound_generator.sample_rate) for each in images])


def cut_excerpts(bands, length, hop):
    """Excerpts of some steps, (n, length, n_bands), one each `hop` steps; short bands end in 0."""
    if len(bands) < length:
        bands = np.pad(bands, [(0, length - len(bands)), (0, 0)])
    starts = range(0, len(bands) - length + 1, hop)
    return np.array([bands[start : start + length] for start in starts])


def measure_run(bands, others, window):
    """Steps of the longest run of windows in which bands, (n_steps, n_bands), go as others do."""
    own, other = (measure_changes(each) for each in (bands, others))
    n = min(len(own), len(other))
    if n < window:
        return 0
    products = [(a[:n] * b[:n]).sum(axis=1) for a, b in ((own, other), (own, own), (other, other))]
    both, *energies = (np.convolve(each, np.ones(window), "valid") for each in products)
    is_same = both > VERBATIM * np.sqrt(np.maximum(energies[0] * energies[1], MIN_ENERGY**2))
    edges = np.flatnonzero(np.diff(is_same, prepend=False, append=False))
    return int(max(edges[1::2] - edges[::2] + window, default=0))


def make_evaluator(sound_generator, sources, figures):
    """The Evaluator of new pieces; without the model's features it knows none that was held out.

    None for a model without its tracks, as the pretrained one is.

    Args:
        figures: of the first piece: those that are like a genre, and stay so, are compared within
            it, if enough of it was held out.
    """
    like = None if "toward" in figures else figures.get("like")
    try:
        tracks, held_out, genre = TrainingTracks.load(sources.model), [], None
    except FileNotFoundError:
        say(f"{sources.model} does not hold its training tracks: nothing tells copies", sys.stderr)
        return None
    try:
        held_out, genre = load_held_out(sources, tracks, like)
    except (OSError, UserError) as error:
        say(f"new pieces are not compared with held-out ones: {error}", sys.stderr)
    kind = "" if genre is None else f", the sets of {genre} alone"
    text = f"{len(tracks.tracks)} training tracks and {len(held_out)} held-out pieces{kind}"
    say(f"comparing with {text}")
    return Evaluator(sound_generator, tracks, held_out, genre)


def load_held_out(sources, tracks, genre=None):
    """At most MAX_COMPARED spectrograms that a model was not trained on.

    Args:
        genre: that they are to be of; if MIN_SET of it are not there, or None, they are of all.
    Returns:
        (the spectrograms, the genre that they are of or None).
    Raises:
        UserError: the features are of other settings, or of other audio of the same names.
    """
    sources.check_settings()
    features, peaks = sources.features, {}
    for key, entry in features.min_max_values.items():
        track = dataset.get_track(key)
        peaks[track] = max(entry["max"], peaks.get(track, -np.inf))
    for track, peak in zip(tracks.tracks.tolist(), tracks.peaks, strict=True):
        if abs(peaks.get(track, peak) - peak) > SAME_PEAK:
            raise UserError(
                f"{features.path} is of other audio than {sources.model} was trained "
                "on: name its own folder with --saved_data"
            )
    parts = dataset.load_split(sources.model / "split.json")
    held_out = parts["valid"] | parts["test"]
    keys = [key for key in features.keys if dataset.get_track(key) in held_out]
    alike = [key for key in keys if dataset.get_genre(key) == genre]
    if genre not in tracks.genres or len(alike) < MIN_SET:
        alike, genre = keys, None
    chosen = [alike[index] for index in choose_evenly(len(alike))]
    return [dataset.load_spectrogram(features.path, key) for key in chosen], genre


def choose_evenly(count):
    """At most MAX_COMPARED indices of count, evenly spaced."""
    return np.linspace(0, count - 1, min(count, MAX_COMPARED)).astype(int)


def measure_kernel_distance(reference, points):
    """How far a set of summaries is from a reference set, whatever their sizes.

    The squared maximum mean discrepancy, unbiased, times 100 (Gretton et al. 2012), with a
    Gaussian kernel as wide as the median distance within the reference: about 0 if both are draws
    of one distribution.

    Args:
        reference, points: float (n, d) and (m, d); each number counts by its deviation in the
            reference.
    """
    scale = np.maximum(reference.std(axis=0), 1e-6)
    points, reference = points / scale, reference / scale
    squares = cdist(reference, reference, "sqeuclidean")
    width = np.median(squares[np.triu_indices(len(reference), 1)]) or 1.0
    pairs = squares, *(cdist(points, each, "sqeuclidean") for each in (points, reference))
    return estimate_discrepancy(*(np.exp(-each / (2 * width)) for each in pairs))


def measure_coverage(reference, points):
    """The share of a reference set that has one of the points as near as its own NEAREST-th
    neighbour in the set (Naeem et al. 2020); see measure_kernel_distance."""
    scale = np.maximum(reference.std(axis=0), 1e-6)
    points, reference = points / scale, reference / scale
    within = np.sort(cdist(reference, reference), axis=1)
    radius = within[:, min(NEAREST, len(reference) - 1)]
    return float((cdist(reference, points).min(axis=1) <= radius).mean())


def summarise(bands):
    """Means, deviations and mean changes of bands, float64 (n, 3 * n_bands)."""
    bands = bands.astype(np.float64)
    changes = np.abs(np.diff(bands, axis=1)).mean(axis=1) if bands.shape[1] > 1 else 0 * bands[:, 0]
    return np.concatenate([bands.mean(axis=1), bands.std(axis=1), changes], axis=1)


def summarise_form(bands, length):
    """Means of bands (n, n_steps, n_bands) over parts of some steps, on average, and how alike
    parts are that lie 1, 2 and 3 apart: float64 (n, n_bands + 3 or less)."""
    n_parts = bands.shape[1] // length
    parts = bands[:, : n_parts * length].reshape(len(bands), n_parts, length, -1).mean(axis=2)
    deviations = parts - parts.mean(axis=1, keepdims=True)
    energy = np.maximum(np.square(deviations).mean(axis=(1, 2)), 1e-9)
    alike = [
        (deviations[:, lag:] * deviations[:, :-lag]).mean(axis=(1, 2)) / energy
        for lag in range(1, min(4, n_parts))
    ]
    alike = np.reshape(alike, (-1, len(bands))).T
    return np.concatenate([parts.mean(axis=1), alike], axis=1)


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
        self._energy = energy[self._length :] - energy[:n_starts]  # from each moment on

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
