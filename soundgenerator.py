"""Spectrograms through the autoencoder and back into sound.

In:  normalised log spectrograms (n_bins, n_frames, n_channels) and their decibel ranges; latents;
     or recordings of any length.
Out: float32 signals, (n_samples,) or (2, n_samples); used by generate.py.

    generator = SoundGenerator(autoencoder, 256, frame_size=1024, n_samples=65488)
    signals, latents = generator.generate(spectrograms, min_max_values)
    signal = generator.reconstruct(recording)
"""

import itertools
import math

import numpy as np

from preprocess import FRAME_SIZE, SAMPLE_RATE, TOP_DB, LogSpectrogramExtractor, MinMaxNormaliser
from support.command_line import show_progress
from support.dataset import add_channel_axis
from support.griffin_lim import SEED, GriffinLim
from support.spectrograms import SILENCE_DB, normalise_to, resize, to_amplitude, to_log_spectrogram


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
        seed: of the phases that no slope implies, and of the texture.
        texture: the Texture that the autoencoder's spectrograms lack, or None.
    """

    def __init__(
        self,
        autoencoder,
        hop_length,
        *,
        frame_size=FRAME_SIZE,
        n_samples=None,
        sample_rate=SAMPLE_RATE,
        top_db=TOP_DB,
        seed=SEED,
        texture=None,
    ):
        self.autoencoder = autoencoder
        self.hop_length = hop_length
        self.frame_size = frame_size
        self.n_samples = n_samples
        self.sample_rate = sample_rate
        self.top_db = top_db
        self.seed = seed
        self.texture = texture
        self._extractor = LogSpectrogramExtractor(frame_size, hop_length, top_db=None)
        self._griffin_lim = GriffinLim(frame_size, hop_length, seed=seed)
        self._min_max_normaliser = MinMaxNormaliser(0, 1)

    @property
    def n_frames(self):
        """Frames of a piece."""
        return 1 + self.n_samples // self.hop_length

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
        signals = self.convert_spectrograms_to_audio(reconstructed, ranges, is_generated=True)
        return signals, latents

    def convert_spectrograms_to_audio(self, spectrograms, min_max_values, *, is_generated=False):
        """The signals of normalised log spectrograms of any size; see generate().

        Args:
            is_generated: whether they came out of the autoencoder, and lack texture.
        """
        log_spectrograms = map(self.restore_log_spectrogram, spectrograms, min_max_values)
        if is_generated:
            log_spectrograms = map(self.add_texture, log_spectrograms)
        amplitudes = map(to_amplitude, log_spectrograms)
        return [*self._griffin_lim.invert_all(amplitudes, self.n_samples, is_extended=True)]

    def add_texture(self, log_spectrogram, first_frame=0, peak=None):
        """A generated log spectrogram of any length, in dB, with what it lacks; see Texture.

        Args:
            first_frame, peak: where it begins in a longer one, and that one's peak in dB.
        """
        if self.texture is None:
            return log_spectrogram
        return self.texture.apply(log_spectrogram, self._extractor, self.seed, first_frame, peak)

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
        if n_frames is None:
            n_frames = self.n_frames if self.n_samples else image.shape[1]
        image = resize(image, (self.frame_size // 2, n_frames))
        log_spectrogram = to_log_spectrogram(image, min_max, self._min_max_normaliser)
        return np.where(image <= 0, np.float32(SILENCE_DB), log_spectrogram)

    def view(self, signal, start=0, stop=None):
        """A recording of any length as the autoencoder sees it.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
            start, stop: samples that the first frame is centred at, and the last one at most.
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
        peak = max(float(extract(begin, end).max()) for _, begin, end, _ in plan)
        min_max = {"min": peak - self.top_db, "max": peak}
        height, step_width = self.autoencoder.input_shape[0], self.autoencoder.frames_per_step

        def cut(first, last):
            image = normalise_to(extract(first, last), min_max)
            return resize(image, (height, (last - first) * step_width))

        return plan, cut, min_max

    def encode(self, signal, start=0, stop=None):
        """A recording of any length as latents; see view().

        Returns:
            (latents float32 (steps, latent_space_dim), its range {"min": dB, "max": dB}).
        """
        plan, cut, min_max = self.view(signal, start, stop)
        latents = []
        for first, begin, end, last in show_progress(plan, len(plan), "encoding"):
            encoded = self.autoencoder.encode(cut(first, last)[np.newaxis])[0]
            latents.append(encoded[begin - first : end - first])
        stop = signal.shape[-1] if stop is None else stop
        return np.concatenate(latents)[: self.count_steps(stop - start)], min_max

    def decode(self, latents, min_max):
        """Yield the log spectrogram of latents, stretch by stretch, without texture.

        Args:
            latents: float32 (steps, latent_space_dim).
        Yields:
            float32 (n_bins, any, n_channels), dB.
        """
        steps, frames = self._steps_and_frames
        padded = np.pad(latents, [(0, -len(latents) % steps), (0, 0)], mode="edge")
        plan = [*self.autoencoder.plan_stretches(len(padded), steps)]
        for first, begin, end, last in show_progress(plan, len(plan), "decoding"):
            (image,) = self.autoencoder.decode(padded[np.newaxis, first:last])
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
        """The fewest steps of latents that are whole frames of sound, and these."""
        width, step = self.autoencoder.input_shape[1], self.autoencoder.frames_per_step
        n_frames = self.n_frames if self.n_samples else width
        columns = math.lcm(step, width // math.gcd(width, n_frames))
        return columns // step, columns * n_frames // width

    def make_sound(self, latents, min_max, n_samples):
        """The signal of latents, float32 (steps, latent_space_dim), in a range of decibels."""
        amplitudes = self._make_amplitudes(latents, min_max)
        return self._griffin_lim.invert_long(amplitudes, n_samples)

    def _make_amplitudes(self, latents, min_max, n_known=0):
        """Yield the amplitudes of latents, but for the first n_known frames, with their texture."""
        first_frame = 0
        for part in self.decode(latents, min_max):
            new = part[:, max(0, n_known - first_frame) :]
            first_frame += part.shape[1]
            if new.shape[1]:
                textured = self.add_texture(new, first_frame - new.shape[1], min_max["max"])
                yield to_amplitude(textured)

    def reconstruct(self, signal):
        """A recording of any length, float32 (n_samples,) or (2, n_samples), through the model."""
        latents, min_max = self.encode(signal)
        return self.make_sound(latents, min_max, signal.shape[-1])

    def encode_past(self, signal):
        """The end of a recording as latents, whose last step ends where continue_sound() begins.

        Returns:
            (latents, range), as encode() has them.
        """
        end = self._find_end(signal)
        step = self._steps_and_frames[1] * self.hop_length
        start = min(end % step, end - step)  # of a short one there is silence before it
        return self.encode(signal, start, end - self.hop_length)

    def continue_sound(self, signal, latents, min_max, n_known, n_samples):
        """A recording, and what follows it without a seam.

        The new part begins half a frame before the recording's end: the frames before are whole.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
            latents: float32 (steps, latent_space_dim); those of the recording's end come first.
            n_known: how many of them are the recording's.
            n_samples: how many to add to the recording.
        """
        griffin_lim, end = self._griffin_lim, self._find_end(signal)
        steps, frames = self._steps_and_frames
        n_past = griffin_lim.n_past_frames
        past = np.atleast_2d(cut_samples(signal, end - griffin_lim.n_past, end))
        known = to_amplitude(self._extract(signal, end - n_past * self.hop_length, 0, n_past))
        amplitudes = self._make_amplitudes(latents, min_max, n_known * frames // steps)
        n_new = signal.shape[-1] + n_samples - end
        new = griffin_lim.invert_long(itertools.chain([known], amplitudes), n_new, past=past)
        return np.concatenate([signal[..., :end], new], axis=-1)

    def _find_end(self, signal):
        return max(0, signal.shape[-1] - self.frame_size // 2)

    def _extract(self, signal, start, first, last):
        """The log spectrogram of frames first to last, the 0th of which is centred at start."""
        half_frame = self.frame_size // 2
        begin, end = (start + frame * self.hop_length for frame in (first, last - 1))
        samples = cut_samples(signal, begin - half_frame, end + half_frame)
        return add_channel_axis(self._extractor.extract(samples, is_extended=True))


def cut_samples(signal, start, stop):
    """Samples start to stop of a signal, (..., n_samples); silence before and behind it."""
    first, last = np.clip((start, stop), 0, signal.shape[-1])
    widths = [(0, 0)] * (signal.ndim - 1) + [(first - start, stop - last)]
    return np.pad(signal[..., first:last], widths)
