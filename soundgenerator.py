"""Spectrograms through the autoencoder and back into sound.

In:  normalised log spectrograms (n_bins, n_frames, n_channels) and their decibel ranges; latents;
     or recordings of any length.
Out: float32 signals, (n_samples,) or (2, n_samples); used by generate.py.

    generator = SoundGenerator(autoencoder, 256, frame_size=1024, n_samples=65488)
    signals, latents = generator.generate(spectrograms, min_max_values)
"""

import itertools

import librosa
import numpy as np

from preprocess import FRAME_SIZE, SAMPLE_RATE, TOP_DB, LogSpectrogramExtractor, MinMaxNormaliser
from support.command_line import show_progress
from support.dataset import add_channel_axis
from support.griffin_lim import SEED, GriffinLim
from support.spectrograms import SILENCE_DB, resize, to_amplitude, to_image, to_log_spectrogram

DECODE_BATCH_SIZE = 32  # windows of a long sound, decoded at a time
MIN_LEVEL = 1e-5  # of a block of sound that has a level to change
MAX_GAIN = 4.0  # of a block
LEVELS_PER_HOP = 4  # blocks from one window of a song to the next
MAX_SKETCHED = 4096  # frames of a long sound that are kept to be drawn


class SoundGenerator:
    """Bridges an autoencoder's spectrograms and sound.

    Long sound is made of windows, each as long as a piece, that overlap by half.

    Args:
        autoencoder: an Autoencoder, or None if only convert_spectrograms_to_audio is used.
        hop_length: samples, at most half of frame_size.
        frame_size: samples; spectrograms have frame_size / 2 rows, the Nyquist row left out.
        n_samples: length of a piece; None makes it hop_length * (n_frames - 1).
        sample_rate: Hz.
        top_db: dB kept below the peak of a window.
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
        """Frames of a piece, and of a window."""
        return 1 + self.n_samples // self.hop_length

    @property
    def window_hop(self):
        """Frames from one window to the next."""
        return max(1, self.n_frames // 2)

    def generate(self, spectrograms, min_max_values):
        """Reconstruct spectrograms and turn them into sound.

        Args:
            spectrograms: float32, in [0, 1], (height, width) or (height, width, n_channels) each;
                they are resized to the autoencoder's size.
            min_max_values: {"min": dB, "max": dB} of each.
        Returns:
            (signals, latents): a list of float32 signals, and float32 (n, latent_space_dim).
        """
        generated_spectrograms, latents = self.autoencoder.reconstruct(
            self.fit_images(spectrograms)
        )
        signals = self.convert_spectrograms_to_audio(
            generated_spectrograms, min_max_values, is_generated=True
        )
        return signals, latents

    def convert_spectrograms_to_audio(self, spectrograms, min_max_values, *, is_generated=False):
        """The signals of normalised log spectrograms of any size; see generate().

        Args:
            is_generated: whether they came out of the autoencoder, and lack texture.
        """
        log_spectrograms = map(self.restore_log_spectrogram, spectrograms, min_max_values)
        if is_generated:
            log_spectrograms = map(self.add_texture, log_spectrograms)
        return [*self.invert_all(log_spectrograms, self.n_samples)]

    def add_texture(self, log_spectrogram, first_frame=0):
        """A generated log spectrogram of any length, in dB, with what it lacks; see Texture.

        Args:
            first_frame: where it begins in a longer one.
        """
        if self.texture is None:
            return log_spectrogram
        return self.texture.apply(log_spectrogram, self._extractor, self.seed, first_frame)

    def fit_images(self, spectrograms):
        """Spectrograms at the autoencoder's size, float32 (n, height, width, n_channels)."""
        shape = self.autoencoder.input_shape[:2]
        return np.stack([resize(add_channel_axis(image), shape) for image in spectrograms])

    def make_image(self, log_spectrogram):
        """(image of the autoencoder's size, its decibel range) of a window's log spectrogram."""
        shape = self.autoencoder.input_shape[:2]
        return to_image(log_spectrogram, self._min_max_normaliser, top_db=self.top_db, shape=shape)

    def restore_log_spectrogram(self, spectrogram, min_max):
        """Undo resizing and normalisation.

        Returns:
            float32 (n_bins, n_frames, n_channels), dB; SILENCE_DB where the spectrogram is at its
            floor: what was below is not known, and the floor itself would be heard as hiss.
        """
        image = add_channel_axis(np.asarray(spectrogram, np.float32))
        n_frames = self.n_frames if self.n_samples else image.shape[1]
        image = resize(image, (self.frame_size // 2, n_frames))
        log_spectrogram = to_log_spectrogram(image, min_max, self._min_max_normaliser)
        return np.where(image <= 0, np.float32(SILENCE_DB), log_spectrogram)

    def invert_all(self, log_spectrograms, n_samples=None):
        """Yield the signals of log spectrograms of pieces, one per core at a time."""
        amplitudes = map(to_amplitude, log_spectrograms)
        return self._griffin_lim.invert_all(amplitudes, n_samples, is_extended=True)

    def decode(self, latents, min_max_values):
        """Yield the log spectrogram of each latent, float32 (n_bins, n_frames, n_channels), dB.

        They have no texture yet: it is added to what is joined of them.
        """
        for start in range(0, len(latents), DECODE_BATCH_SIZE):
            batch = slice(start, start + DECODE_BATCH_SIZE)
            images = self.autoencoder.decode(latents[batch])
            yield from map(self.restore_log_spectrogram, images, min_max_values[batch])

    def count_windows(self, n_samples):
        """How many windows cover a signal."""
        n_frames = 1 + n_samples // self.hop_length
        return 1 + max(0, -(-(n_frames - self.n_frames) // self.window_hop))

    def join(self, windows, n_samples):
        """One sound of windows that overlap by half.

        Args:
            windows: count_windows(n_samples) log spectrograms, as decode() yields them.
        Returns:
            (signal, log spectrogram in dB, of which a long one has only every n-th frame).
        """
        n_frames = 1 + n_samples // self.hop_length
        sketch = Sketch(n_frames)

        parts = join_windows(windows, self.window_hop, n_frames)
        amplitudes = self._make_amplitudes(parts, sketch)
        return self._griffin_lim.invert_long(amplitudes, n_samples), sketch.get()

    def _make_amplitudes(self, log_spectrograms, sketch):
        """Yield the amplitudes of parts of one sound, with their texture; the sketch sees them."""
        for log_spectrogram in log_spectrograms:
            textured = self.add_texture(log_spectrogram, first_frame=sketch.n_seen)
            sketch.add(textured)
            yield to_amplitude(textured)

    def find_end(self, signal):
        """Where the continuation of a recording begins: half a frame before its end, in samples.

        The frames before that are whole.
        """
        return max(0, signal.shape[-1] - self.frame_size // 2)

    def cut_last_window(self, signal):
        """The log spectrogram of the last window of a recording, up to its end; see find_end()."""
        stop = self.find_end(signal) - self.hop_length  # centre of the last frame
        start = stop - (self.n_frames - 1) * self.hop_length
        return self._extract(signal, start, stop)

    def continue_sound(self, signal, windows, n_samples):
        """What follows a recording, without a seam.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
            windows: log spectrograms, as decode() yields them; the first begins in the middle
                of cut_last_window(), and the next ones follow by half a window.
            n_samples: how many to make, from find_end() on.
        Returns:
            (signal, log spectrogram in dB, of which a long one has only every n-th frame).
        """
        griffin_lim, end = self._griffin_lim, self.find_end(signal)
        n_known = self.n_frames - self.window_hop  # frames of the first window
        n_frames = 1 + n_samples // self.hop_length
        past = np.atleast_2d(cut_samples(signal, end - griffin_lim.n_past, end))
        sketch = Sketch(n_frames)

        start = end - griffin_lim.n_past_frames * self.hop_length
        known = to_amplitude(self._extract(signal, start, end - self.hop_length))
        parts = join_windows(windows, self.window_hop, n_known + n_frames)
        amplitudes = self._make_amplitudes(skip_frames(parts, n_known), sketch)
        amplitudes = itertools.chain([known], amplitudes)
        new = griffin_lim.invert_long(amplitudes, n_samples, past=past)
        return new, sketch.get()

    def reconstruct(self, signal):
        """A recording of any length through the autoencoder.

        Args:
            signal: float32 (n_samples,) or (2, n_samples).
        Returns:
            (signal, log spectrogram in dB, that of the recording, the mean squared error of the
            windows' images); of long log spectrograms only every n-th frame.
        """
        n_samples = signal.shape[-1]
        sketch, errors = Sketch(1 + n_samples // self.hop_length), []

        def reconstruct_windows():
            windows = show_progress(
                self.cut_windows(signal), self.count_windows(n_samples), "windows"
            )
            for index, window in enumerate(windows):
                sketch.add(window[:, sketch.n_seen - index * self.window_hop :])
                image, min_max = self.make_image(window)
                (reconstructed,), _ = self.autoencoder.reconstruct(image[np.newaxis])
                errors.append(np.square(reconstructed - image).mean())
                yield self.restore_log_spectrogram(reconstructed, min_max)

        sound, reconstructed = self.join(reconstruct_windows(), n_samples)
        block = max(1, self.window_hop * self.hop_length // LEVELS_PER_HOP)
        for _ in range(2):  # the second time for what gains that change within a block have left
            match_level(sound, signal, block)
        return sound, reconstructed, sketch.get(), float(np.mean(errors))

    def cut_windows(self, signal):
        """Yield the log spectrograms of the windows that cover a signal; see join().

        Args:
            signal: float32 (n_samples,) or (2, n_samples); behind its end is silence.
        """
        for index in range(self.count_windows(signal.shape[-1])):
            start = index * self.window_hop * self.hop_length
            yield self._extract(signal, start, start + (self.n_frames - 1) * self.hop_length)

    def _extract(self, signal, start, stop):
        """The log spectrogram of frames centred at the samples from start to stop, every hop."""
        half_frame = self.frame_size // 2
        samples = cut_samples(signal, start - half_frame, stop + half_frame)
        return add_channel_axis(self._extractor.extract(samples, is_extended=True))


class Sketch:
    """A log spectrogram that comes in parts; of a long one every n-th frame, enough to draw.

    Args:
        n_frames: how many will come, or fewer than come.
    """

    def __init__(self, n_frames):
        self.n_frames = n_frames
        self.n_seen = 0
        self._step = -(-n_frames // MAX_SKETCHED)
        self._parts = []

    def add(self, log_spectrogram):
        """The next frames, float32 (n_bins, any, n_channels), dB."""
        kept = log_spectrogram[:, : self.n_frames - self.n_seen]
        self._parts.append(kept[:, -self.n_seen % self._step :: self._step].copy())
        self.n_seen += kept.shape[1]

    def get(self):
        """The frames so far, float32 (n_bins, any, n_channels), dB."""
        return np.concatenate(self._parts, axis=1)


def match_level(sound, recorded, block):
    """Make a sound as loud as a recording, block by block, with gains that change smoothly.

    Args:
        sound: float32 (..., n_samples), which is changed.
        recorded: of the same shape.
        block: samples.
    """
    n_samples = sound.shape[-1]
    blocks = [slice(start, start + block) for start in range(0, n_samples, block)]
    levels = np.array([[measure_level(each[..., b]) for b in blocks] for each in (recorded, sound)])
    gains = np.minimum(levels[0] / np.maximum(levels[1], MIN_LEVEL), MAX_GAIN)
    centres = np.array([(b.start + min(b.stop, n_samples)) / 2 for b in blocks])
    for b in blocks:
        samples = np.arange(b.start, min(b.stop, n_samples))
        sound[..., b] *= np.interp(samples, centres, gains).astype(np.float32)


def measure_level(signal):
    """The root of the mean square."""
    return float(np.sqrt(np.mean(np.square(signal), dtype=np.float64)))


def cut_samples(signal, start, stop):
    """Samples start to stop of a signal, (..., n_samples); silence before and behind it."""
    first, last = np.clip((start, stop), 0, signal.shape[-1])
    widths = [(0, 0)] * (signal.ndim - 1) + [(first - start, stop - last)]
    return np.pad(signal[..., first:last], widths)


def join_windows(windows, hop, n_frames):
    """Cross-fade overlapping log spectrograms into one, in power, without a seam.

    Args:
        windows: float32 (n_bins, n_window_frames, n_channels), dB, each `hop` frames after the
            one before; hop <= n_window_frames / 2, so every frame but the first and last few is
            a mixture of at least two.
        n_frames: of the whole, at most as many as the windows cover.
    Yields:
        its parts, one after the other: float32 (n_bins, any, n_channels), dB, SILENCE_DB at least.
    """
    total, n_left = None, n_frames
    for window in windows:
        n_bins, n_window_frames, n_channels = window.shape
        if total is None:
            fade = 1 - np.abs(np.linspace(-1, 1, n_window_frames + 2, dtype=np.float32)[1:-1])
            total = np.zeros((n_bins, n_window_frames, n_channels), np.float32)
            weights = np.zeros(n_window_frames, np.float32)
        else:  # the frames that are done have left
            total = np.pad(total, [(0, 0), (0, hop), (0, 0)])
            weights = np.pad(weights, (0, hop))
        total += fade[:, np.newaxis] * np.square(librosa.db_to_amplitude(window))
        weights += fade
        n_done = min(hop, n_left)
        yield to_decibels(total[:, :n_done] / weights[:n_done, np.newaxis])
        total, weights, n_left = total[:, hop:], weights[hop:], n_left - n_done
    if n_left:
        yield to_decibels(total[:, :n_left] / weights[:n_left, np.newaxis])


def skip_frames(log_spectrograms, count):
    """Yield parts of a log spectrogram without the first `count` frames of the whole."""
    for log_spectrogram in log_spectrograms:
        rest = log_spectrogram[:, count:]
        count = max(0, count - log_spectrogram.shape[1])
        if rest.shape[1]:
            yield rest


def to_decibels(power):
    return librosa.power_to_db(power, amin=10 ** (SILENCE_DB / 10), top_db=None)
