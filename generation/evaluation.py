"""How near sounds are to each other, and whether new pieces are replays, and music at all.

In:  signals; new pieces, the training pieces, and those held out.
Out: distances in dB; where training audio comes nearest; distances of sets.

    distance = measure_mel_distance(recorded, generated, sample_rate=22050)
    item = Evaluator(sound_generator, pieces, held_out).compare(item)
"""

import librosa
import numpy as np
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
MIN_ENERGY = 1e-3  # of the changes of an excerpt that is not silent
MAX_COMPARED = 200  # training and held-out pieces, at most, in sets
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
        self._pieces = pieces
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
        best, place, n_replays = -1.0, 0, 0
        for window in windows:
            (bands,) = self._extract_bands([window])
            self._bands.append(bands)
            similarity, step = self._search.find(bands)
            n_replays += similarity > REPLAY
            if similarity > best:
                best, place = similarity, step
        index, step = divmod(place, self._pieces.bands.shape[1])
        key = self._pieces.keys[index]
        step_s = FRAMES_PER_STEP * generator.hop_length / generator.sample_rate
        piece_s = generator.n_samples / generator.sample_rate
        seconds = dataset.get_segment(key) * piece_s + step * step_s
        figures = {
            **item.figures,
            "nearest training audio": f"{dataset.get_track(key)} at {seconds:.1f} s",
            f"similarity to it (replays: above {REPLAY})": best,
            "replays": f"{n_replays} of {n_windows} windows",
        }
        return item._replace(figures=figures)

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
        log_spectrograms = [
            generator.add_texture(generator.restore_log_spectrogram(image, nominal))
            for image in reconstructed
        ]
        rng = np.random.default_rng(0)
        noise = [
            next(generator.cut_windows(rng.standard_normal(generator.n_samples, np.float32)))
            for _ in self.held_out
        ]
        sets = {
            "new pieces": np.array(self._bands),
            "reconstructions": self._extract_bands(log_spectrograms),
            "training pieces": self._pieces.bands[choose_evenly(len(self._pieces.bands))],
            "noise": self._extract_bands(noise),
        }
        reference = extract_bands(self.held_out, generator.sample_rate)
        return measure_kernel_distances(reference, sets)

    def _extract_bands(self, log_spectrograms):
        images = [self.sound_generator.make_image(each)[0] for each in log_spectrograms]
        return extract_bands(np.stack(images), self.sound_generator.sample_rate)


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
        self._changes = measure_changes(bands.reshape(-1, bands.shape[-1]))
        energy = np.cumsum(np.square(self._changes).sum(axis=1, dtype=np.float64))
        self._energy = np.concatenate([[0], energy])  # of the changes before each step

    def find(self, bands):
        """The excerpt, (n_steps, n_bands), where it is most similar.

        Returns:
            (similarity in [-1, 1], 0 for silence; the step at which the similar audio starts).
        """
        changes = measure_changes(bands)
        products = scipy.signal.oaconvolve(self._changes, changes[::-1], mode="valid", axes=0)
        energy = self._energy[len(changes) :] - self._energy[: -len(changes)]
        scale = np.sqrt(np.maximum(energy, MIN_ENERGY)) * max(np.linalg.norm(changes), MIN_ENERGY)
        similarities = products.sum(axis=1) / scale
        step = int(similarities.argmax())
        return float(similarities[step]), step


def measure_changes(bands):
    """Changes from step to step of the slopes from band to band, (n_steps - 1, n_bands - 1)."""
    return np.diff(np.diff(bands.astype(np.float32), axis=1), axis=0)
