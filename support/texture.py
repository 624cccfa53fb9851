"""What a bottleneck takes from sound, put back: the scatter of noise, and the level.

In:  log spectrograms in dB of pieces, and of their reconstructions.
Out: how much of both is missing; log spectrograms with it.

    texture = measure_texture(log_spectrograms, reconstructed, extractor)
    log_spectrogram = texture.apply(log_spectrogram, extractor, seed=0)

The least squared error of decibels is a mean's, so a reconstruction is smooth where the sound was
noise: there single cells scatter by 5.6 dB about their mean, the logarithm of an exponential
variable, and no latent can carry them. It is also too quiet, for the mean of decibels lies below
the decibels of the mean. So the log spectrogram of white noise, without its mean, is added, as
much of it as brings the steps from frame to frame back to their size; being that of a signal, it
survives phase recovery. (DDSP, Engel et al. 2020, and RAVE, Caillon and Esling 2021, have noise
synthesizers for the same.)
"""

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.errors import UserError
from support.files import read_json, write_json
from support.spectrograms import SILENCE_DB

TEXTURE_NAME = "texture.json"  # in a model folder
MAX_AMOUNT = 1.5  # of noise's own scatter
RANGE_DB = 80.0  # below the peak: there, and in silence, nothing is added
NOISE_SAMPLES = 1 << 18  # that are made together
FADE_DB = 30.0  # above that, all is


class Texture(NamedTuple):
    """What is missing from reconstructions."""

    amounts: np.ndarray  # float32 (n_bins,): shares of the scatter of white noise
    level_db: float  # added afterwards

    def apply(self, log_spectrogram, extractor, seed=0, first_frame=0):
        """A log spectrogram with scatter, at its level.

        Args:
            log_spectrogram: float32 (n_bins, n_frames, n_channels), dB; what is silent stays so.
            extractor: the LogSpectrogramExtractor of its frames.
            seed: of the noise, which all channels share, so that it does not part them.
            first_frame: where it begins in a longer one, whose parts fit together.
        """
        scatter = make_scatter(extractor, log_spectrogram.shape[1], seed, first_frame)
        added = self.amounts[:, np.newaxis] * scatter + np.float32(self.level_db)
        height = log_spectrogram - (log_spectrogram.max() - RANGE_DB)
        textured = log_spectrogram + np.clip(height / FADE_DB, 0, 1) * added[..., np.newaxis]
        return np.where(log_spectrogram <= SILENCE_DB, np.float32(SILENCE_DB), textured)

    def save(self, folder):
        """Write texture.json."""
        values = {"amounts": self.amounts.tolist(), "level_db": self.level_db}
        write_json(Path(folder) / TEXTURE_NAME, values)

    @classmethod
    def load(cls, folder, n_bins):
        """The Texture in a model folder.

        Raises:
            FileNotFoundError: it has none.
            UserError: it is damaged, or of another number of bins.
        """
        path = Path(folder) / TEXTURE_NAME
        if not path.exists():
            raise FileNotFoundError(
                f"no {path}: complete the model with train.py --resume, or add --no-texture"
            )
        values = read_json(path)
        try:
            amounts, level_db = np.array(values["amounts"], np.float32), float(values["level_db"])
            is_valid = amounts.shape == (n_bins,) and math.isfinite(level_db)
            if not is_valid or not ((amounts >= 0) & (amounts <= MAX_AMOUNT)).all():
                raise UserError(f"it must hold {n_bins} amounts in 0..{MAX_AMOUNT} and a level")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error}): run train.py again") from error
        return cls(amounts, level_db)


def make_scatter(extractor, n_frames, seed, first_frame=0):
    """The log spectrogram of white noise without its mean, float32 (n_bins, n_frames), dB."""
    start = first_frame * extractor.hop_length
    stop = start + (n_frames - 1) * extractor.hop_length + extractor.frame_size
    blocks = range(start // NOISE_SAMPLES, -(-stop // NOISE_SAMPLES))
    noise = np.concatenate([make_noise(seed, block) for block in blocks])
    first = start - blocks[0] * NOISE_SAMPLES
    noise = noise[first : first + stop - start]
    # Of a Hann window and exponential powers; 10 / ln(10) times Euler's constant lower than theirs.
    mean_db = 10 / math.log(10) * (math.log(0.375 * extractor.frame_size) - np.euler_gamma)
    return extractor.extract(noise, is_extended=True) - np.float32(mean_db)


@functools.lru_cache(maxsize=4)
def make_noise(seed, block):
    """Samples of white noise that goes on from block to block, float32 (NOISE_SAMPLES,)."""
    return np.random.default_rng((seed, block)).standard_normal(NOISE_SAMPLES, np.float32)


def measure_texture(log_spectrograms, reconstructed, extractor):
    """The Texture that reconstructions lack.

    Args:
        log_spectrograms, reconstructed: float32 (n_bins, n_frames, n_channels) each, dB.
    """
    squares = np.zeros((2, extractor.frame_size // 2))  # of the originals', the reconstructions'
    count = np.zeros(extractor.frame_size // 2)
    for pair in zip(log_spectrograms, reconstructed, strict=True):
        steps = np.diff(pair, axis=2)  # from frame to frame
        is_heard = np.minimum(*pair) > SILENCE_DB
        sounds = is_heard[:, 1:] & is_heard[:, :-1]
        squares += np.square(steps).sum(axis=(2, 3), where=sounds)
        count += sounds.sum(axis=(1, 2))
    noise = np.square(np.diff(make_scatter(extractor, 1000, seed=1))).mean()
    missing = (squares[0] - squares[1]) / np.maximum(count, 1) / noise
    amounts = np.sqrt(np.clip(missing, 0, MAX_AMOUNT**2)).astype(np.float32)
    texture = Texture(amounts, 0.0)
    levels = []
    for original, quiet in zip(log_spectrograms, reconstructed, strict=True):
        powers = [
            np.exp(math.log(10) / 10 * spectrogram.astype(np.float64)).sum(
                where=original > SILENCE_DB
            )
            for spectrogram in (original, texture.apply(quiet, extractor))
        ]
        if min(powers) > 0:
            levels.append(10 * math.log10(powers[0] / powers[1]))
    return texture._replace(level_db=float(np.mean(levels)) if levels else 0.0)
