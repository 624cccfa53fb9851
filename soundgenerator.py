"""Spectrograms through the autoencoder and back into sound.

In:  normalised log spectrograms (n_bins, n_frames, n_channels) and their decibel ranges.
Out: float32 signals, (n_samples,) or (2, n_samples); used by generate.py.

    generator = SoundGenerator(autoencoder, 256, frame_size=1024, n_samples=65488)
"""

import collections
import concurrent.futures
import math
import os

import numba
import numpy as np
import scipy.fft

from preprocess import (
    FRAME_SIZE,
    MinMaxNormaliser,
    check_hop_length,
    make_window,
    resize_spectrogram,
)

N_ITER = 40  # Griffin-Lim iterations; benchmarks/phase_recovery.py
MOMENTUM = 0.99
INIT = "pghi"
SILENCE_DB = -99.9  # amplitude_to_db puts digital silence at -100 dB
SEED = 0

HANN_GAMMA = 0.26  # squared frame sizes: the Gaussian nearest to a Hann window (theirs: 0.25645)
TOP_DB = 80.0  # below its peak, where a magnitude's slope says nothing about the phase
N_LEVELS = 4096  # of log magnitude, that phases are integrated along from loud to soft

N_MELS = 80  # the mel distance's bands, frame and floor
MEL_FRAME_SIZE = 1024  # samples
MEL_HOP_LENGTH = 256  # samples
MEL_TOP_DB = 80.0


class SoundGenerator:
    """Bridges an autoencoder's spectrograms and sound.

    Args:
        autoencoder: an Autoencoder, or None where only convert_spectrograms_to_audio is used.
        hop_length: samples, at most half of frame_size.
        frame_size: samples; spectrograms have frame_size / 2 rows, the Nyquist row left out.
        n_samples: length of a signal; None makes it hop_length * (n_frames - 1).
        n_iter, momentum, init: of the GriffinLim.
        seed: of the phases that no slope tells.
    """

    def __init__(
        self, autoencoder, hop_length, *, frame_size=FRAME_SIZE, n_samples=None, n_iter=N_ITER,
        momentum=MOMENTUM, init=INIT, seed=SEED,
    ):  # fmt: skip
        self.autoencoder = autoencoder
        self.hop_length = hop_length
        self.frame_size = frame_size
        self.n_samples = n_samples
        self._griffin_lim = GriffinLim(
            frame_size, hop_length, n_iter=n_iter, momentum=momentum, init=init, seed=seed
        )
        self._min_max_normaliser = MinMaxNormaliser(0, 1)

    def generate(self, spectrograms, min_max_values):
        """Reconstruct spectrograms and turn them into sound.

        Args:
            spectrograms: float32 images of the autoencoder's size, in [0, 1], (height, width)
                or (height, width, n_channels) each.
            min_max_values: {"min": dB, "max": dB} each.
        Returns:
            (signals, latents): a list of float32 signals, and float32 (n, latent_space_dim).
        """
        images = np.stack([add_channel_axis(spectrogram) for spectrogram in spectrograms])
        reconstructed, latents = self.autoencoder.reconstruct(images)
        return self.convert_spectrograms_to_audio(reconstructed, min_max_values), latents

    def convert_spectrograms_to_audio(self, spectrograms, min_max_values):
        """The signals of normalised log spectrograms of any size; see generate()."""
        amplitudes = (
            self.restore_amplitude(spectrogram, min_max)
            for spectrogram, min_max in zip(spectrograms, min_max_values, strict=True)
        )
        return [*self._griffin_lim.invert_all(amplitudes, self.n_samples)]

    def restore_amplitude(self, spectrogram, min_max):
        """Undo resizing, normalisation and decibels.

        Args:
            spectrogram: float32 (height, width) or (height, width, n_channels), in [0, 1].
            min_max: {"min": dB, "max": dB}.
        Returns:
            float32 amplitude (n_channels, frame_size / 2 + 1, n_frames), Nyquist row zero.
        """
        return self.convert_to_amplitude(self.restore_log_spectrogram(spectrogram, min_max))

    def restore_log_spectrogram(self, spectrogram, min_max):
        """Undo resizing and normalisation: float32 (n_bins, n_frames, n_channels), dB."""
        image = add_channel_axis(np.asarray(spectrogram, dtype=np.float32))
        image = resize_spectrogram(image, self._get_native_shape(image))
        return self._min_max_normaliser.denormalise(image, min_max["min"], min_max["max"])

    def convert_to_amplitude(self, log_spectrogram):
        """The amplitude, as restore_amplitude() gives it, of a log spectrogram of any length."""
        import librosa

        amplitude = librosa.db_to_amplitude(log_spectrogram)
        amplitude[log_spectrogram <= SILENCE_DB] = 0
        amplitude = np.pad(amplitude, [(0, 1), (0, 0), (0, 0)])
        return np.moveaxis(amplitude, -1, 0).astype(np.float32)

    def invert(self, amplitude, n_samples=None):
        """The signal of one amplitude spectrogram; see GriffinLim.invert."""
        return self._griffin_lim.invert(amplitude, n_samples or self.n_samples)

    def _get_native_shape(self, image):
        n_frames = image.shape[1]
        if self.n_samples:
            n_frames = 1 + self.n_samples // self.hop_length
        return self.frame_size // 2, n_frames


class GriffinLim:
    """Sound from amplitude spectrograms as librosa.stft makes them (Hann window, centred frames).

    Fast Griffin-Lim (Griffin and Lim 1984; Perraudin, Balazs and Sondergaard 2013), started from
    phase gradient heap integration (Prusa, Balazs and Sondergaard 2017).

    Args:
        frame_size: samples, even.
        hop_length: samples, at most half of frame_size.
        n_iter: iterations, >= 0.
        momentum: of Perraudin et al., in [0, 1].
        init: "pghi", or "random" for uniform phases.
        seed: of the random phases; with "pghi", of those more than TOP_DB below the peak.
    Raises:
        ValueError: a value is out of its range.
    """

    def __init__(
        self, frame_size, hop_length, *, n_iter=N_ITER, momentum=MOMENTUM, init=INIT, seed=SEED
    ):
        if n_iter < 0 or not 0 <= momentum <= 1 or init not in ("pghi", "random"):
            raise ValueError(
                "n_iter must be at least 0, momentum in 0..1 and init pghi or random, "
                f"got {n_iter}, {momentum} and {init}"
            )
        self.frame_size = frame_size
        self.hop_length = check_hop_length(hop_length, frame_size)
        self.n_iter = n_iter
        self.momentum = momentum
        self.init = init
        self.seed = seed
        self._window = make_window(frame_size)

    def invert(self, amplitude, n_samples=None, *, n_threads=None):
        """The signal whose spectrogram comes close to an amplitude.

        Args:
            amplitude: float32 (n_channels, frame_size / 2 + 1, n_frames), finite, >= 0.
            n_samples: length of the signal; None makes it hop_length * (n_frames - 1).
            n_threads: None takes every core.
        Returns:
            float32 (n_samples,) for one channel, else (n_channels, n_samples).
        Raises:
            ValueError: the amplitude is something else.
        """
        amplitude = self._check(amplitude)
        n_samples = n_samples or self.hop_length * max(1, amplitude.shape[-1] - 1)
        signals = np.stack([
            self._invert_channel(np.ascontiguousarray(channel.T), n_samples, n_threads)
            for channel in amplitude
        ])  # fmt: skip
        return signals[0] if len(signals) == 1 else signals

    def invert_all(self, amplitudes, n_samples=None):
        """Yield the signals of amplitudes, one a core at a time; see invert()."""
        n_cores = count_cores()
        with concurrent.futures.ThreadPoolExecutor(n_cores) as executor:
            waiting = collections.deque()
            for amplitude in amplitudes:
                waiting.append(executor.submit(self.invert, amplitude, n_samples, n_threads=1))
                if len(waiting) > n_cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _check(self, amplitude):
        amplitude = np.asarray(amplitude, np.float32)
        n_bins = self.frame_size // 2 + 1
        if amplitude.ndim != 3 or amplitude.shape[1] != n_bins or 0 in amplitude.shape:
            raise ValueError(
                f"amplitude must be (n_channels, {n_bins}, n_frames), got {amplitude.shape}"
            )
        if not (np.isfinite(amplitude).all() and amplitude.min() >= 0):
            raise ValueError("amplitude must be finite and at least 0, got something else")
        return amplitude

    def _invert_channel(self, magnitude, n_samples, n_threads):
        """magnitude: float32 (n_frames, n_bins)."""
        n_frames, weight = len(magnitude), self.momentum / (1 + self.momentum)
        kept = slice(self.frame_size // 2, self.frame_size // 2 + n_samples)
        inverse_norm = self._make_inverse_norm(n_frames, kept)
        signal = np.zeros(max(len(inverse_norm), kept.stop), np.float32)  # as long as it is padded
        if not magnitude.any():
            return signal[kept]
        with Ranges(n_threads) as ranges:
            phase = self._make_phase(magnitude)
            spectrum = np.empty(magnitude.shape, np.complex64)
            ranges.run(n_frames, combine, magnitude, phase, spectrum)
            previous = np.zeros_like(spectrum)
            for iteration in range(self.n_iter + 1):
                frames = scipy.fft.irfft(
                    spectrum, self.frame_size, axis=1, workers=ranges.count, overwrite_x=True
                )
                ranges.run(len(inverse_norm), overlap_add, frames, self._window, self.hop_length,
                    inverse_norm, signal)  # fmt: skip
                if iteration == self.n_iter:
                    break
                ranges.run(n_frames, cut_frames, signal, self._window, self.hop_length, frames)
                spectrum = scipy.fft.rfft(frames, axis=1, workers=ranges.count, overwrite_x=True)
                ranges.run(n_frames, impose_magnitude, spectrum, previous, magnitude, weight)
        return signal[kept].copy()

    def _make_inverse_norm(self, n_frames, kept):
        """What overlapping windows are divided by, as a factor; zero in the padding."""
        norm = np.zeros(self.hop_length * (n_frames - 1) + self.frame_size, np.float32)
        for frame in range(n_frames):
            start = frame * self.hop_length
            norm[start : start + self.frame_size] += self._window**2
        inverse_norm = np.zeros_like(norm)
        np.divide(1, norm, out=inverse_norm, where=norm > np.finfo(np.float32).tiny)
        inverse_norm[: kept.start] = 0
        inverse_norm[kept.stop :] = 0
        return inverse_norm

    def _make_phase(self, magnitude):
        """float32 (n_frames, n_bins), radians."""
        rng = np.random.default_rng(self.seed)
        phase = rng.uniform(0, 2 * np.pi, magnitude.shape).astype(np.float32)
        if self.init == "pghi":
            floor = magnitude.max() * np.float32(10 ** (-TOP_DB / 20))
            log_magnitude = np.log(np.maximum(magnitude, floor))
            gamma = HANN_GAMMA * self.frame_size**2  # samples squared
            integrate_phase(
                log_magnitude, phase, self.hop_length / self.frame_size,
                self.hop_length * self.frame_size / gamma,
                -gamma / (self.hop_length * self.frame_size),
            )  # fmt: skip
        return phase


class Ranges:
    """Runs numba kernels over ranges of their rows, one range a thread.

    Args:
        count: threads; None takes every core.
    """

    def __init__(self, count=None):
        self.count = count or count_cores()
        self._executor = None

    def __enter__(self):
        if self.count > 1:
            self._executor = concurrent.futures.ThreadPoolExecutor(self.count)
        return self

    def __exit__(self, *_):
        if self._executor:
            self._executor.shutdown()

    def run(self, n_rows, kernel, *arguments):
        """Call kernel(*arguments, start, stop) until all rows are done."""
        if not self._executor:
            kernel(*arguments, 0, n_rows)
            return
        edges = np.linspace(0, n_rows, self.count + 1).astype(int)
        for _ in self._executor.map(
            lambda start, stop: kernel(*arguments, start, stop), edges[:-1], edges[1:]
        ):
            pass


def count_cores():
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


# Without the GIL, so that threads share the work; a division that does not look for zeros and rows
# that are cut before their loop let the compiler use vector instructions, 2 to 7 times as fast.
compiled = numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")


@compiled
def combine(magnitude, phase, spectrum, start, stop):
    """spectrum, complex64 (n_frames, n_bins), of a magnitude and a phase."""
    for m in range(start, stop):
        for k in range(magnitude.shape[1]):
            spectrum[m, k] = magnitude[m, k] * complex(math.cos(phase[m, k]), math.sin(phase[m, k]))


@compiled
def impose_magnitude(spectrum, previous, magnitude, weight, start, stop):
    """Subtract the previous spectrum, weighted, and give the rest the magnitude asked for.

    Both are complex64 (n_frames, n_bins); the spectrum as it was becomes the previous one.
    """
    weight, tiny = np.float32(weight), np.float32(1e-30)
    for m in range(start, stop):
        row, previous_row, magnitude_row = spectrum[m], previous[m], magnitude[m]
        for k in range(magnitude_row.size):
            value = row[k]
            x = value.real - weight * previous_row[k].real
            y = value.imag - weight * previous_row[k].imag
            factor = magnitude_row[k] / np.sqrt(x * x + y * y + tiny)
            previous_row[k] = value
            row[k] = complex(factor * x, factor * y)


@compiled
def overlap_add(frames, window, hop_length, inverse_norm, signal, start, stop):
    """Samples start to stop of the signal, the padding in front included."""
    n_frames, frame_size = frames.shape
    signal[start:stop] = 0
    for m in range(max(0, (start - frame_size) // hop_length + 1), n_frames):
        begin = m * hop_length
        if begin >= stop:
            break
        first, last = max(0, start - begin), min(frame_size, stop - begin)
        row, weights = frames[m, first:last], window[first:last]
        part = signal[begin + first : begin + last]
        for n in range(part.size):
            part[n] += row[n] * weights[n]
    part, factors = signal[start:stop], inverse_norm[start:stop]
    for n in range(part.size):
        part[n] *= factors[n]


@compiled
def cut_frames(signal, window, hop_length, frames, start, stop):
    """Windowed frames of a padded signal, float32 (n_frames, frame_size)."""
    for m in range(start, stop):
        row = frames[m]
        part = signal[m * hop_length : m * hop_length + row.size]
        for n in range(row.size):
            row[n] = part[n] * window[n]


@compiled
def integrate_phase(log_magnitude, phase, turns_per_bin, time_factor, frequency_factor):
    """Fill in the phases that a log magnitude's slopes tell, from its loudest points outward.

    A Gaussian window's log magnitude s and phase p obey, per frame and per bin,
    dp = 2 pi k turns_per_bin + time_factor ds/dk and dp = frequency_factor ds/dm - pi
    (the last term: librosa's frames start half a window before their centre). Points are taken
    in the order of N_LEVELS equal levels, in linked lists, which is faster than a heap.

    Args:
        log_magnitude: float32 (n_frames, n_bins), natural logarithm; its lowest value is a floor.
        phase: float32 (n_frames, n_bins), radians; points on the floor are left as they are.
    """
    n_frames, n_bins = log_magnitude.shape
    magnitudes, phases = log_magnitude.ravel(), phase.ravel()
    levels, ordered = sort_into_levels(magnitudes)
    first = np.full(N_LEVELS, -1, np.int32)  # of each level's list of points to go on from
    following = np.empty(magnitudes.size, np.int32)
    for seed in ordered:
        if levels[seed] < 0:  # its phase is known, or it lies on the floor
            continue
        level = np.int64(levels[seed])
        levels[seed], first[level], following[seed], phases[seed] = -1, seed, -1, 0
        while level >= 0:
            point = first[level]
            if point < 0:
                level -= 1
                continue
            first[level] = following[point]
            m, k = point // n_bins, point % n_bins
            for direction in range(4):
                frame = m + (direction == 0) - (direction == 1)
                k_next = k + (direction == 2) - (direction == 3)
                if not (0 <= frame < n_frames and 0 <= k_next < n_bins):
                    continue
                neighbour = frame * n_bins + k_next
                if levels[neighbour] < 0:
                    continue
                if direction < 2:
                    slope = slope_over_bins(log_magnitude, m, k)
                    slope += slope_over_bins(log_magnitude, frame, k)
                    step = 2 * math.pi * k * turns_per_bin + time_factor * slope / 2
                else:
                    slope = slope_over_frames(log_magnitude, m, k)
                    slope += slope_over_frames(log_magnitude, m, k_next)
                    step = frequency_factor * slope / 2 - math.pi
                sign = 1 if direction % 2 == 0 else -1
                phases[neighbour] = (phases[point] + sign * step) % (2 * math.pi)
                found = np.int64(levels[neighbour])
                levels[neighbour], following[neighbour] = -1, first[found]
                first[found] = neighbour
                level = max(level, found)


@compiled
def sort_into_levels(magnitudes):
    """(each point's level, -1 on the floor; the points above it, loudest level first)."""
    floor, top = magnitudes.min(), magnitudes.max()
    factor = (N_LEVELS - 1) / max(top - floor, np.float32(1e-6))
    levels = np.full(magnitudes.size, -1, np.int16)
    counts = np.zeros(N_LEVELS, np.int64)
    for point in range(magnitudes.size):
        if magnitudes[point] > floor:
            levels[point] = int((magnitudes[point] - floor) * factor)
            counts[levels[point]] += 1
    places = counts[::-1].cumsum()[::-1] - counts
    ordered = np.empty(counts.sum(), np.int32)
    for point in range(magnitudes.size):
        if levels[point] >= 0:
            ordered[places[levels[point]]] = point
            places[levels[point]] += 1
    return levels, ordered


@compiled
def slope_over_bins(values, m, k):
    """Central difference, one-sided at the borders."""
    below, above = max(k - 1, 0), min(k + 1, values.shape[1] - 1)
    return (values[m, above] - values[m, below]) / (above - below)


@compiled
def slope_over_frames(values, m, k):
    """Central difference, one-sided at the borders; 0 where there is one frame alone."""
    before, after = max(m - 1, 0), min(m + 1, values.shape[0] - 1)
    return (values[after, k] - values[before, k]) / max(after - before, 1)


def add_channel_axis(spectrogram):
    """(height, width) becomes (height, width, 1); three axes stay."""
    return spectrogram[..., np.newaxis] if spectrogram.ndim == 2 else spectrogram


def measure_spectral_convergence(amplitude, signal, frame_size, hop_length):
    """20 log10(||S - |STFT(y)||| / ||S||) in dB, lower is better; -inf for silence kept silent.

    Args:
        amplitude: float32 (n_channels, frame_size / 2 + 1, n_frames).
        signal: float32 (n_samples,) or (n_channels, n_samples).
    """
    import librosa

    signal = np.atleast_2d(signal)
    again = np.abs(librosa.stft(signal, n_fft=frame_size, hop_length=hop_length))
    error = np.linalg.norm(amplitude - again)
    if error == 0:
        return -np.inf
    return float(20 * np.log10(error / max(np.linalg.norm(amplitude), np.finfo(np.float32).tiny)))


def measure_mel_distance(reference, signal, sample_rate):
    """Mean absolute difference in dB of two signals' log mel spectrograms.

    Both are float32 (n_samples,) or (n_channels, n_samples), of one length; the floor of both
    lies MEL_TOP_DB under the reference's peak.
    """
    import librosa

    def extract_mel(y):
        power = librosa.feature.melspectrogram(
            y=np.atleast_2d(y), sr=sample_rate, n_fft=MEL_FRAME_SIZE, hop_length=MEL_HOP_LENGTH,
            n_mels=N_MELS,
        )  # fmt: skip
        return librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None)

    reference_mel, mel = extract_mel(reference), extract_mel(signal)
    floor = reference_mel.max() - MEL_TOP_DB
    return float(np.abs(np.maximum(reference_mel, floor) - np.maximum(mel, floor)).mean())
