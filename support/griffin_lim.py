"""Phase recovery: sound from amplitude spectrograms alone.

In:  amplitude spectrograms as librosa.stft makes them, float32 (n_channels, n_bins + 1, n_frames).
Out: signals, float32 (n_samples,) or (n_channels, n_samples).

    signal = GriffinLim(1024, 256).invert(amplitude, n_samples=65488)
"""

import collections
import concurrent.futures
import math

import joblib
import numba
import numpy as np
import scipy.fft
import scipy.ndimage

N_ITER = 40  # iterations; benchmarks/phase_recovery.py
MOMENTUM = 0.99
INIT = "pghi"
SEED = 0

HANN_GAMMA = 0.26  # squared frame sizes: the Gaussian nearest to a Hann window (theirs: 0.25645)
TOP_DB = 80.0  # below the peak; further down a magnitude's slope says nothing about the phase
FRAME_STEPS, BIN_STEPS = (1, -1, 0, 0), (0, 0, 1, -1)  # to the four neighbours of a cell
SHARED_ITERATIONS = 0.7  # share of the iterations that channels make as one
WIDTH = 24.0  # radians by which a channel's phases scatter per unit of unlikeness to the others
ALIKE = 0.008  # unlikeness of what is centred, at most
PATCH = 24, 8  # frames and bins, over which channels are compared, and phases scatter smoothly
MIN_NORM = 0.2  # of the highest: below it, at a signal's end, too few windows overlap to divide by
TINY = np.finfo(np.float32).tiny  # in place of silence, where that would be divided by
STRETCH_FRAMES = 2048  # of a long signal that are inverted together
N_LEVELS = 4096  # of log magnitude; phases are integrated along them from loud to soft


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
        seed: of the random phases; with "pghi", of those of cells TOP_DB below the peak, and of
            the scatter between channels.
    """

    def __init__(
        self, frame_size, hop_length, *, n_iter=N_ITER, momentum=MOMENTUM, init=INIT, seed=SEED
    ):
        self.frame_size = frame_size
        self.hop_length = hop_length
        self.n_iter = n_iter
        self.momentum = momentum
        self.init = init
        self.seed = seed
        self._window = np.hanning(frame_size + 1)[:-1].astype(np.float32)  # periodic

    def invert(
        self,
        amplitude,
        n_samples=None,
        *,
        past=None,
        future=None,
        is_extended=False,
        n_threads=None,
    ):
        """The signal whose spectrogram comes close to an amplitude.

        Args:
            amplitude: float32 (n_channels, frame_size / 2 + 1, n_frames), finite, >= 0.
            n_samples: length of the signal; None makes it hop_length * (n_frames - 1).
            past, future: float32 (n_channels, any), what comes just before the signal and just
                after it, for no seam to be there; or None. The amplitude's first frame begins with
                the past. Frames within either have its phases.
            is_extended: whether the frames at the ends hold what is outside the signal; else
                silence is there, as librosa.stft pads it.
            n_threads: None takes every core.
        Returns:
            float32 (n_samples,) for one channel, else (n_channels, n_samples).
        """
        n_samples = n_samples or self.hop_length * max(1, amplitude.shape[-1] - 1)
        # (n_channels, n_frames, n_bins)
        magnitudes = np.ascontiguousarray(amplitude.swapaxes(1, 2), np.float32)
        nothing = np.empty((len(magnitudes), 0), np.float32)
        known = [nothing if each is None else each for each in (past, future)]
        with RowThreads(n_threads) as threads:
            signals = self._invert_channels(magnitudes, known, n_samples, is_extended, threads)
        return signals[0] if len(signals) == 1 else np.stack(signals)

    @property
    def n_past_frames(self):
        """Frames of what comes before a stretch of a long signal, from which it goes on."""
        return 2 * self.frame_size // self.hop_length

    @property
    def n_past(self):
        """Samples of it, half a frame before the first of those frames included."""
        return self.n_past_frames * self.hop_length + self.frame_size // 2

    def invert_long(self, amplitudes, n_samples, *, past=None, future=None):
        """The signal, made in stretches, of an amplitude that comes in parts of some frames.

        Beside the signal itself, the memory that this takes does not grow with the length.

        Args:
            past, future: float32 (n_channels, n_past): it goes on from the one, whose
                n_past_frames come first, and on to the other, whose n_past_frames come last.
        Returns:
            float32 (n_samples,) for one channel, else (n_channels, n_samples).
        """
        n_past_frames, done = self.n_past_frames, 0
        stretch = max(STRETCH_FRAMES, 2 * n_past_frames)
        seen = stretch + n_past_frames  # it looks ahead, for a smooth joint
        held = signal = None
        for amplitude in amplitudes:
            if signal is None:
                held = amplitude[:, :, :0]
                signal = np.empty((len(amplitude), n_samples), np.float32)
            held = np.concatenate([held, amplitude], axis=2)
            n_known = 0 if past is None else n_past_frames
            n_ahead = seen + (0 if future is None else n_past_frames)
            while held.shape[2] >= n_known + n_ahead and done < n_samples:
                part = held[:, :, : n_known + seen]
                made = np.atleast_2d(self.invert(part, seen * self.hop_length, past=past))
                made = made[:, : min(n_samples - done, stretch * self.hop_length)]
                signal[:, done : done + made.shape[1]] = made
                done += made.shape[1]
                past = made[:, -self.n_past :]
                held = held[:, :, n_known + stretch - n_past_frames :]
                n_known = n_past_frames
        if done < n_samples:
            signal[:, done:] = self.invert(held, n_samples - done, past=past, future=future)
        return signal[0] if len(signal) == 1 else signal

    def invert_all(self, amplitudes, n_samples=None, *, is_extended=False):
        """Yield the signals of amplitudes, one per core at a time; see invert()."""
        options = {"is_extended": is_extended, "n_threads": 1}
        n_cores = joblib.cpu_count()
        with concurrent.futures.ThreadPoolExecutor(n_cores) as executor:
            waiting = collections.deque()
            for amplitude in amplitudes:
                waiting.append(executor.submit(self.invert, amplitude, n_samples, **options))
                if len(waiting) > n_cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _invert_channels(self, magnitudes, known, n_samples, is_extended, threads):
        """The signals of channels, which share the phase that their mean power has.

        Alone, each would find phases of its own, and what is panned between them would fall apart.
        In the last iterations each goes its own way: as far as its magnitudes ask for it, and from
        phases that are scattered where they rise and fall unlike those of the others, since what
        is wide would be narrowed else.
        """
        shared, n_shared = magnitudes[0], 0
        shared_known = [mix(each) for each in known]
        if len(magnitudes) > 1:
            n_shared = round(SHARED_ITERATIONS * self.n_iter)
            shared = np.sqrt(np.square(magnitudes).mean(axis=0))
        phase = self._make_phase(shared, shared_known, n_samples)
        common = n_samples, is_extended, threads
        spectrum = np.empty(shared.shape, np.complex64)
        threads.run(len(shared), combine, shared, phase, spectrum)
        if n_shared:
            _, spectrum = self._iterate(shared, spectrum, shared_known, n_shared, *common)
            phase = np.angle(spectrum)
        signals, rng = [], np.random.default_rng(self.seed)
        for magnitude, *own_known in zip(magnitudes, *known, strict=True):
            own_phase = phase + scatter(magnitude, shared, rng) if n_shared else phase
            threads.run(len(magnitude), combine, magnitude, own_phase, spectrum)
            n_iter = self.n_iter - n_shared
            signals.append(self._iterate(magnitude, spectrum, own_known, n_iter, *common)[0])
        return signals

    def _iterate(self, magnitude, spectrum, known, n_iter, n_samples, is_extended, threads):
        """Griffin-Lim from a spectrum on: (signal, the last spectrum).

        Args:
            magnitude: float32 (n_frames, n_bins).
            spectrum: complex64, of the same shape; it is overwritten.
            known: float32 (n_past,) and (n_future,), what lies before and after the signal.
        """
        past, future = known
        n_frames, weight = len(magnitude), self.momentum / (1 + self.momentum)
        start = self._find_start(past)
        kept = slice(start, start + n_samples)
        inverse_norm = self._make_inverse_norm(n_frames)
        if not is_extended:
            inverse_norm[:start], inverse_norm[kept.stop :] = 0, 0
        n_padded = max(len(inverse_norm), kept.stop + len(future))
        signal = np.zeros(n_padded, np.float32)
        step = self._window, self.hop_length
        previous = np.zeros_like(spectrum)
        for iteration in range(n_iter + 1):
            is_last = iteration == n_iter
            frames = scipy.fft.irfft(
                spectrum, self.frame_size, axis=1, workers=threads.count, overwrite_x=not is_last
            )
            threads.run(len(inverse_norm), overlap_add, frames, *step, inverse_norm, signal)
            signal[: len(past)] = past
            signal[kept.stop : kept.stop + len(future)] = future
            if is_last:
                break
            threads.run(n_frames, cut_frames, signal, *step, frames)
            spectrum = scipy.fft.rfft(frames, axis=1, workers=threads.count, overwrite_x=True)
            threads.run(n_frames, impose_magnitude, spectrum, previous, magnitude, weight)
        return signal[kept].copy(), spectrum

    def _find_start(self, past):
        """The signal's first sample, after the past, or the padding of librosa.stft."""
        return len(past) or self.frame_size // 2

    def _make_inverse_norm(self, n_frames):
        """What overlapping windows are multiplied with, once added."""
        norm = np.zeros(self.hop_length * (n_frames - 1) + self.frame_size, np.float32)
        for frame in range(n_frames):
            start = frame * self.hop_length
            norm[start : start + self.frame_size] += self._window**2
        return 1 / np.maximum(norm, MIN_NORM * norm.max())

    def _make_phase(self, magnitude, known, n_samples):
        """float32 (n_frames, n_bins), radians; of frames within the known sound, its own."""
        rng = np.random.default_rng(self.seed)
        phase = rng.uniform(0, 2 * np.pi, magnitude.shape).astype(np.float32)
        is_known = np.zeros(len(magnitude), bool)
        starts = self.hop_length * np.arange(len(magnitude))
        begins = 0, self._find_start(known[0]) + n_samples
        for sound, begin in zip(known, begins, strict=True):
            inside = starts[(starts >= begin) & (starts + self.frame_size <= begin + len(sound))]
            frames = [sound[start - begin :][: self.frame_size] for start in inside]
            if frames:
                spectra = scipy.fft.rfft(np.array(frames) * self._window, axis=1)
                phase[inside // self.hop_length] = np.angle(spectra)
                is_known[inside // self.hop_length] = True
        if self.init == "pghi":
            floor = max(magnitude.max() * np.float32(10 ** (-TOP_DB / 20)), TINY)
            log_magnitude = np.log(np.maximum(magnitude, floor))
            gamma = HANN_GAMMA * self.frame_size**2  # samples squared
            area = self.hop_length * self.frame_size  # samples squared
            turns_per_bin = self.hop_length / self.frame_size
            factors = area / gamma, -gamma / area
            integrate_phase(log_magnitude, phase, is_known, turns_per_bin, *factors)
        return phase


def mix(signals):
    """The mean of channels, (n_channels, n), as loud as they are on average."""
    mean = signals.mean(axis=0)
    lost = np.square(signals).sum() / len(signals) / max(np.square(mean).sum(), TINY)
    return mean * np.sqrt(lost)


def scatter(magnitude, shared, rng):
    """Smooth random phases, float32 radians, as large as a channel is unlike what it shares.

    A patch's unlikeness is 1 less the cosine between both magnitudes: 0 for what is panned, which
    is louder or softer throughout, and about 0.06 for two independent noises.

    Args:
        magnitude, shared: float32 (n_frames, n_bins).
    """
    products = [a * b for a, b in ((magnitude, shared), (magnitude, magnitude), (shared, shared))]
    for axis, size in enumerate(PATCH):
        edges = np.arange(0, magnitude.shape[axis], size)
        products = [np.add.reduceat(product, edges, axis) for product in products]
    both, own, others = (scipy.ndimage.uniform_filter(product, 3) for product in products)
    unlike = 1 - both / np.sqrt(np.maximum(own * others, TINY))
    unlike = np.maximum(unlike - ALIKE, 0)
    phase = WIDTH * unlike * rng.standard_normal(unlike.shape, np.float32)
    for axis, size in enumerate(PATCH):  # between the centres of patches, the variance kept
        place = (np.arange(magnitude.shape[axis], dtype=np.float32) + 0.5) / size - 0.5
        place = np.clip(place, 0, phase.shape[axis] - 1)
        before, after = np.floor(place).astype(int), np.ceil(place).astype(int)
        angle = np.float32(np.pi / 2) * (place % 1)
        angle = angle[:, np.newaxis] if axis == 0 else angle
        phase = phase.take(before, axis) * np.cos(angle) + phase.take(after, axis) * np.sin(angle)
    return phase


class RowThreads(concurrent.futures.ThreadPoolExecutor):
    """Runs numba kernels over ranges of their rows, one range per thread.

    Not numba's prange: its default threading layer ends the process if two threads use it at
    once, as invert_all does.

    Args:
        count: threads; None takes every core.
    """

    def __init__(self, count=None):
        self.count = count or joblib.cpu_count()
        super().__init__(self.count)

    def run(self, n_rows, kernel, *arguments):
        """Call kernel(*arguments, start, stop) until all rows are done."""
        edges = np.linspace(0, n_rows, self.count + 1).astype(int)
        apply = map if self.count == 1 else self.map
        parts = apply(lambda start, stop: kernel(*arguments, start, stop), edges[:-1], edges[1:])
        collections.deque(parts, 0)  # raises what a thread has raised


def compiled(function):
    """A function as machine code, kept on disk if this user may write there.

    Without the GIL, threads share the work. Divisions that do not check for zero, and rows that
    are sliced before their loop, let the compiler use vector instructions, 2 to 7 times as fast.
    """
    options = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except (RuntimeError, OSError):  # neither here nor in the home folder
        return numba.njit(**options)(function)


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


def integrate_phase(log_magnitude, phase, is_known, turns_per_bin, time_factor, frequency_factor):
    """Fill in the phases that a log magnitude's slopes imply, from its loudest points outward.

    A Gaussian window's log magnitude s and phase p obey, per frame and per bin,
    dp = 2 pi k turns_per_bin + time_factor ds/dk and dp = frequency_factor ds/dm - pi
    (the last term: librosa's frames start half a window before their centre).

    Args:
        log_magnitude: float32 (n_frames, n_bins), natural logarithm; its lowest value is a floor.
        phase: float32 (n_frames, n_bins), radians; points on the floor are left as they are.
        is_known: bool (n_frames,), whose phases are known already, and spread to the others first.
    """
    n_frames, n_bins = log_magnitude.shape
    slopes = np.gradient(log_magnitude, axis=0) if n_frames > 1 else np.zeros_like(log_magnitude)
    turns = turns_per_bin * np.arange(n_bins) % 1
    to_frames = 2 * np.pi * turns + time_factor * np.gradient(log_magnitude, axis=1)
    steps = np.stack([to_frames, frequency_factor * slopes - np.pi]).astype(np.float32)
    height = log_magnitude - log_magnitude.min()
    levels = np.where(height > 0, height * ((N_LEVELS - 1) / max(height.max(), 1e-6)), -1)
    levels = levels.astype(np.int16).ravel()
    ordered = np.argsort(-levels, kind="stable")[: np.count_nonzero(levels >= 0)]
    spread_phase(steps, levels, ordered, phase, is_known)


@compiled
def spread_phase(steps, levels, ordered, phase, is_known):
    """Add steps up, in the order of N_LEVELS equal levels; linked lists are faster than a heap.

    Args:
        steps: float32 (2, n_frames, n_bins), of the phase from frame to frame and bin to bin.
        levels: int16 (n_frames * n_bins,), -1 on the floor; they are overwritten.
        ordered: int (n,), the points above the floor, the loudest first.
        phase, is_known: see integrate_phase().
    """
    _, n_frames, n_bins = steps.shape
    phases = phase.ravel()
    first = np.full(N_LEVELS, -1, np.int32)  # of each level's list of points to go on from
    following = np.empty(phases.size, np.int32)
    for point in range(levels.size):
        if is_known[point // n_bins] and levels[point] >= 0:
            level = np.int64(levels[point])
            levels[point], following[point], first[level] = -1, first[level], point
    for number in range(-1, len(ordered)):
        if number < 0:  # the known ones
            level = np.int64(N_LEVELS - 1)
        elif levels[ordered[number]] < 0:  # its phase is known, or it lies on the floor
            continue
        else:
            seed = ordered[number]
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
                m_next, k_next = m + FRAME_STEPS[direction], k + BIN_STEPS[direction]
                if not (0 <= m_next < n_frames and 0 <= k_next < n_bins):
                    continue
                neighbour = m_next * n_bins + k_next
                if levels[neighbour] < 0:
                    continue
                along = steps[direction // 2]
                step = (along[m, k] + along[m_next, k_next]) / 2
                sign = 1 if direction % 2 == 0 else -1
                phases[neighbour] = (phases[point] + sign * step) % (2 * math.pi)
                next_level = np.int64(levels[neighbour])
                levels[neighbour], following[neighbour] = -1, first[next_level]
                first[next_level] = neighbour
                level = max(level, next_level)
