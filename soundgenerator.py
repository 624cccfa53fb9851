"""Spectrograms through the autoencoder and back into sound.

In:  normalised log spectrograms (n_bins, n_frames, n_channels) and their decibel ranges; latents;
     or recordings of any length.
Out: float32 signals, (n_samples,) or (2, n_samples); used by generate.py.

    generator = SoundGenerator.load("model")
    signals, latents = generator.generate(spectrograms, min_max_values)
    signal = generator.reconstruct(recording)
"""

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np

from preprocess import FRAME_SIZE, SAMPLE_RATE, TOP_DB, LogSpectrogramExtractor, MinMaxNormaliser
from support.command_line import show_progress
from support.dataset import add_channel_axis
from support.detail import Detail
from support.griffin_lim import SEED, GriffinLim
from support.settings import Settings
from support.spectrograms import SILENCE_DB, normalise_to, resize, to_amplitude, to_log_spectrogram

CONTEXT_S = 10.0  # seconds of a recording, on each side, that what is new beside it depends on
QUIET = 2**-15  # of full scale, the last of 16 bits: no more than that is silence


@dataclasses.dataclass(eq=False)
class SoundGenerator:
    """Bridges an autoencoder's spectrograms and sound.

    Sound of any length is one sequence of latents, a step of some frames each, in one range of
    decibels: that of its peak.

    Args:
        autoencoder: an Autoencoder, or None if only convert_spectrograms_to_audio is used.
        hop_length: samples, at most half of frame_size.
        frame_size: samples; spectrograms have frame_size / 2 rows, the Nyquist row left out.
        n_samples: length of a piece; None makes it hop_length * (n_frames - 1).
        sample_rate: Hz.
        top_db: dB kept below the peak of a sound.
        seed: of the phases that no slope implies, and of the detail.
        detail: the Detail that the autoencoder's spectrograms lost, or None.
    """

    autoencoder: object
    hop_length: int
    _: dataclasses.KW_ONLY
    frame_size: int = FRAME_SIZE
    n_samples: int | None = None
    sample_rate: int = SAMPLE_RATE
    top_db: float = TOP_DB
    seed: int = SEED
    detail: Detail | None = None

    def __post_init__(self):
        self._extractor = LogSpectrogramExtractor(self.frame_size, self.hop_length, top_db=None)
        self._griffin_lim = GriffinLim(self.frame_size, self.hop_length, seed=self.seed)
        self._min_max_normaliser = MinMaxNormaliser(0, 1)

    @classmethod
    def of(cls, settings, autoencoder, seed=SEED, detail=None):
        """The SoundGenerator of Settings."""
        names = ("hop_length", "frame_size", "n_samples", "sample_rate", "top_db")
        how = {name: getattr(settings, name) for name in names}
        return cls(autoencoder, **how, seed=seed, detail=detail)

    @classmethod
    def load(cls, folder, seed=SEED):
        """The SoundGenerator of a model folder."""
        from autoencoder import Autoencoder  # it takes seconds to import Keras

        autoencoder = Autoencoder.load(folder)
        settings = Settings.load(Path(folder) / "settings.json", "run train.py --resume")
        return cls.of(settings, autoencoder, seed, Detail.load(folder))

    @property
    def n_frames(self):
        """Frames of a piece, None if it has no length of its own."""
        return 1 + self.n_samples // self.hop_length if self.n_samples else None

    def generate(self, spectrograms, min_max_values):
        """Reconstruct spectrograms and turn them into sound.

        Args:
            spectrograms: float32, in [0, 1], (height, width) or (height, width, n_channels) each;
                they are resized to the autoencoder's size.
            min_max_values: {"min": dB, "max": dB} of each.
        Returns:
            (signals, latents): a list of float32 signals, and float32
            (n, n_steps, latent_space_dim).
        """
        images, ranges = self.fit_images(spectrograms, min_max_values)
        reconstructed, latents = self.autoencoder.reconstruct(images)
        images = map(self.add_detail, reconstructed)
        return self.convert_spectrograms_to_audio(images, ranges), latents

    def convert_spectrograms_to_audio(self, spectrograms, min_max_values):
        """The signals of normalised log spectrograms of any size; see generate()."""
        log_spectrograms = map(self.restore_log_spectrogram, spectrograms, min_max_values)
        amplitudes = map(to_amplitude, log_spectrograms)
        return [*self._griffin_lim.invert_all(amplitudes, self.n_samples, is_extended=True)]

    def add_detail(self, image, first_frame=0):
        """An image out of the autoencoder with what it had lost; see Detail."""
        return self.detail.add(image, self.seed, first_frame) if self.detail else image

    def fit_images(self, spectrograms, min_max_values):
        """Spectrograms as the autoencoder knows them: of its size, top_db from floor to peak.

        Returns:
            (images float32 (n, height, width, n_channels), the range of each).
        """
        ranges = [{"min": each["max"] - self.top_db, "max": each["max"]} for each in min_max_values]
        images = []
        for spectrogram, old, new in zip(spectrograms, min_max_values, ranges, strict=True):
            image = add_channel_axis(np.asarray(spectrogram, np.float32))
            image = normalise_to(to_log_spectrogram(image, old, self._min_max_normaliser), new)
            images.append(resize(image, self.autoencoder.input_shape[:2]))
        return np.stack(images), ranges

    def restore_log_spectrogram(self, spectrogram, min_max, n_frames=None):
        """Undo resizing and normalisation.

        Args:
            n_frames: frames of it; None: of a piece.
        Returns:
            float32 (n_bins, n_frames, n_channels), dB; SILENCE_DB where the spectrogram is at its
            floor: what was below is not known, and the floor itself would be heard as hiss.
        """
        image = add_channel_axis(np.asarray(spectrogram, np.float32))
        n_frames = n_frames or self.n_frames or image.shape[1]
        image = resize(image, (self.frame_size // 2, n_frames))
        log_spectrogram = to_log_spectrogram(image, min_max, self._min_max_normaliser)
        return np.where(image <= 0, np.float32(SILENCE_DB), log_spectrogram)

    def view(self, signal, start=0, stop=None, peak=None):
        """A recording of any length as the autoencoder sees it.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
            start, stop: samples that the first frame is centred at, and the last one at most.
            peak: dB, of its range; None: its own.
        Returns:
            (the stretches of its steps, as plan_stretches() has them; a function from a first step
            and a last one to their image, float32 (height, width, n_channels), in [0, 1]; the
            range {"min": dB, "max": dB} of the whole).
        """
        stop = signal.shape[-1] if stop is None else stop
        n_frames = 1 + (stop - start) // self.hop_length
        steps, frames = self._steps_and_frames
        n_steps = steps * -(-n_frames // frames)

        def extract(first, last):
            """The log spectrogram of some steps; there is silence behind the last frame."""
            first, last = (step * frames // steps for step in (first, last))
            known = self._extract(signal, start, first, min(last, n_frames))
            widths = [(0, 0), (0, last - first - known.shape[1]), (0, 0)]
            return np.pad(known, widths, constant_values=SILENCE_DB)

        plan = [*self.autoencoder.plan_stretches(n_steps, steps)]
        if peak is None:
            peak = max(float(extract(begin, end).max()) for _, begin, end, _ in plan)
        min_max = {"min": peak - self.top_db, "max": peak}
        height, step_width = self.autoencoder.input_shape[0], self.autoencoder.frames_per_step

        def cut(first, last):
            image = normalise_to(extract(first, last), min_max)
            return resize(image, (height, (last - first) * step_width))

        return plan, cut, min_max

    def encode(self, signal, start=0, stop=None, peak=None):
        """A recording of any length as latents; see view().

        Returns:
            (latents float32 (steps, latent_space_dim), its range {"min": dB, "max": dB}).
        """
        plan, cut, min_max = self.view(signal, start, stop, peak)
        latents = []
        for first, begin, end, last in show_progress(plan, len(plan), "encoding"):
            encoded = self.autoencoder.encode(cut(first, last)[np.newaxis])[0]
            latents.append(encoded[begin - first : end - first])
        stop = signal.shape[-1] if stop is None else stop
        return np.concatenate(latents)[: self.count_steps(stop - start)], min_max

    def decode(self, latents, min_max):
        """Yield the log spectrogram of latents with its detail, stretch by stretch.

        Args:
            latents: float32 (steps, latent_space_dim).
        Yields:
            float32 (n_bins, any, n_channels), dB.
        """
        steps, frames = self._steps_and_frames
        padded = np.pad(latents, [(0, -len(latents) % steps), (0, 0)], mode="edge")
        reach = self.detail.reach if self.detail else 0
        plan = [*self.autoencoder.plan_stretches(len(padded), steps, reach)]
        for first, begin, end, last in show_progress(plan, len(plan), "decoding"):
            (image,) = self.autoencoder.decode(padded[np.newaxis, first:last])
            image = self.add_detail(image, first * self.autoencoder.frames_per_step)
            n_frames = (last - first) * frames // steps
            log_spectrogram = self.restore_log_spectrogram(image, min_max, n_frames)
            begin, end = ((step - first) * frames // steps for step in (begin, end))
            yield log_spectrogram[:, begin:end]

    def count_steps(self, n_samples):
        """How many latents a sound has."""
        steps, frames = self._steps_and_frames
        return -(-(1 + n_samples // self.hop_length) * steps // frames)

    @property
    def _steps_and_frames(self):
        """(steps, frames): the fewest steps that are whole frames of sound, and these frames."""
        width, step = self.autoencoder.input_shape[1], self.autoencoder.frames_per_step
        n_frames = self.n_frames or width
        columns = math.lcm(step, width // math.gcd(width, n_frames))
        return columns // step, columns * n_frames // width

    def make_sound(self, latents, min_max, n_samples):
        """The signal of latents, float32 (steps, latent_space_dim), in a range of decibels."""
        amplitudes = self._make_amplitudes(latents, min_max)
        return self._griffin_lim.invert_long(amplitudes, n_samples)

    def _make_amplitudes(self, latents, min_max, n_past=0):
        """Yield the amplitudes of latents, but for those of the first steps."""
        steps, frames = self._steps_and_frames
        n_past, first_frame = n_past * frames // steps, 0
        for part in self.decode(latents, min_max):
            new = part[:, max(0, n_past - first_frame) :]
            first_frame += part.shape[1]
            if new.shape[1]:
                yield to_amplitude(new)

    def reconstruct(self, signal):
        """A recording of any length, float32 (n_samples,) or (2, n_samples), through the model."""
        latents, min_max = self.encode(signal)
        return self.make_sound(latents, min_max, signal.shape[-1])

    def fill(self, signal, begin, end, fill, peak=SILENCE_DB, is_fixed=False):
        """A sound whose samples from begin to end are made anew, without a seam.

        Up to half a frame of what is known beside them fades over to what is new.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
            fill: a function from latents, float32 (steps, latent_space_dim), and which of them are
                known, bool (steps,), to all of them; see Prior.fill.
            peak: dB, of the range if nothing is known beside the gap; else it is that of what is.
            is_fixed: take this peak in any case.
        Returns:
            float32, of the signal's shape.
        """
        half_frame = self.frame_size // 2
        first, last = max(0, begin - half_frame), min(signal.shape[-1], end + half_frame)
        latents, known, n_past, peak = self._encode_around(signal, first, last, peak, is_fixed)
        min_max = {"min": peak - self.top_db, "max": peak}
        amplitudes = self._make_amplitudes(fill(latents, known), min_max, n_past)
        new = self._invert_between(signal, first, last, amplitudes)
        fade = np.ones(last - first, np.float32)
        fade[: begin - first] = np.linspace(0, 1, begin - first)
        fade[end - first :] = np.linspace(1, 0, last - end)
        whole = signal.copy()
        whole[..., first:last] += fade * (new - signal[..., first:last])
        return whole

    def _encode_around(self, signal, first, last, peak=SILENCE_DB, is_fixed=False):
        """What is known around a gap: (latents, those of the gap 0; which are known, bool (steps,);
        how many come before the gap; the peak in dB: see fill())."""
        steps, frames = self._steps_and_frames
        block = frames * self.hop_length  # samples of as many steps
        context, n_samples = round(CONTEXT_S * self.sample_rate), signal.shape[-1]
        n_past = min(context, first) // block or int(first > 0)  # one at least: silence fills it
        start = first - n_past * block
        n_blocks = 1 + (last - 1 - start) // block  # to the end of the gap
        place = start + n_blocks * block
        sides = (start, first), (place, min(n_samples, place + context))
        counts = [max(0, 1 + (b - 1 - a) // self.hop_length) for a, b in sides]  # of frames
        is_heard = [np.abs(signal[..., max(0, a) : b]).max(initial=0) > QUIET for a, b in sides]
        if not is_fixed:
            peaks = [
                float(self._extract(signal, a, 0, count).max())
                for (a, _), count, heard in zip(sides, counts, is_heard, strict=True)
                if heard
            ]
            peak = max(peaks, default=peak)
        past, future = (
            self.encode(signal, a, b - 1, peak)[0] if count else self._make_latents(0)
            for (a, b), count in zip(sides, counts, strict=True)
        )
        n_gap = n_blocks * steps - len(past)
        latents = np.concatenate([past, self._make_latents(n_gap), future])
        # Of some steps beside the gap the encoder has seen that it is silent.
        margin = -(-self.autoencoder.reach // self.autoencoder.frames_per_step)
        known = np.ones(len(latents), bool)
        n_before, n_after = (
            heard * max(len(side) - margin, -(-len(side) // 2))  # music need not go on as silence
            for side, heard in zip((past, future), is_heard, strict=True)
        )
        known[n_before : len(known) - n_after] = False
        return latents, known, len(past), peak

    def _make_latents(self, n_steps):
        return np.zeros((n_steps, self.autoencoder.latent_space_dim), np.float32)

    def _invert_between(self, signal, first, last, amplitudes):
        """Samples first to last of a signal, from their amplitudes, in the phase of what is beside
        them."""
        griffin_lim, hop_length = self._griffin_lim, self.hop_length
        n_edge, n_new = griffin_lim.n_past_frames, -(-(last - first) // hop_length)
        known = {}
        if first > 0:
            known["past"] = cut_samples(signal, first - griffin_lim.n_past, first)
            past = to_amplitude(self._extract(signal, first, -n_edge, 0))
            amplitudes = itertools.chain([past], amplitudes)
        if last < signal.shape[-1]:
            stop = first + (n_new + n_edge - 1) * hop_length + self.frame_size // 2
            known["future"] = cut_samples(signal, last, stop)
            future = to_amplitude(self._extract(signal, first, n_new, n_new + n_edge))
            n_before = n_new + (n_edge if first > 0 else 0)
            amplitudes = itertools.chain(crop(amplitudes, n_before), [future])
        known = {name: np.atleast_2d(sound) for name, sound in known.items()}
        return griffin_lim.invert_long(amplitudes, last - first, **known)

    def _extract(self, signal, start, first, last):
        """The log spectrogram of frames first to last, the 0th of which is centred at start."""
        half_frame = self.frame_size // 2
        begin, end = (start + frame * self.hop_length for frame in (first, last - 1))
        samples = cut_samples(signal, begin - half_frame, end + half_frame)
        return add_channel_axis(self._extractor.extract(samples, is_extended=True))


def crop(parts, count):
    """Yield the first frames of parts, (..., n_frames): count of them in all."""
    for part in parts:
        if count > 0:
            yield part[..., :count]
        count -= part.shape[-1]


def cut_samples(signal, start, stop):
    """Samples start to stop of a signal, (..., n_samples); silence before and behind it."""
    first, last = np.clip((start, stop), 0, signal.shape[-1])
    widths = [(0, 0)] * (signal.ndim - 1) + [(first - start, stop - last)]
    return np.pad(signal[..., first:last], widths)
