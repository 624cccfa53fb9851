"""What a bottleneck takes from sound, put back: the scatter of noise, and the level.

In:  log spectrograms in dB of pieces, and of their reconstructions.
Out: how much of both is missing; log spectrograms with it.

    texture = measure_texture(log_spectrograms, reconstructed, extractor)
    log_spectrogram = texture.apply(log_spectrogram, extractor, seed=0)

The least squared error of decibels is a mean's, so a reconstruction is smooth where the sound was
noise: there single cells scatter by 5.6 dB about their mean, the logarithm of an exponential
variable, and no latent can carry them. It is also too quiet, for the mean of decibels lies below
the decibels of the mean. So the log spectrogram of white noise, without its mean, is added; being
that of a signal, it survives phase recovery. (DDSP, Engel et al. 2020, and RAVE, Caillon and
Esling 2021, have noise synthesizers for the same.)

Tones must get none, or they sound like noise. They show in a reconstruction: where partials stand
over the gaps between them its spectrum is rough, and where noise was it is smooth. So amounts are
by how far a cell lies under the peak, and how rough the spectrum is around it. They bring the
smaller steps from frame to frame back to their size: large ones are attacks, not scatter.
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
DEPTHS_DB = (10.0, 20.0, 30.0, 45.0)  # under the peak, between classes
ROUGHNESSES_DB = (2.5, 3.5, 5.0, 7.0, 9.0, 12.0)  # deviations over bins, between classes
SHAPE = (len(DEPTHS_DB) + 1, len(ROUGHNESSES_DB) + 1)
ROUGHNESS_BINS = 11  # that it is measured over; a partial is 4 wide
QUANTILE = 0.25  # of the sizes of steps, that is compared: notes are steady most of the time
MIN_CELLS = 1000  # of a class; one of fewer is taken to lack what all together lack
MAX_AMOUNT = 1.5  # of noise's own scatter
RANGE_DB = 80.0  # below the peak: there, and in silence, nothing is added
NOISE_SAMPLES = 1 << 18  # that are made together
FADE_DB = 30.0  # above that, all is


class Texture(NamedTuple):
    """What is missing from reconstructions."""

    amounts: np.ndarray  # float32 SHAPE: shares of the scatter of white noise, by class
    level_db: float  # added afterwards

    def apply(self, log_spectrogram, extractor, seed=0, first_frame=0, peak=None):
        """A log spectrogram with scatter, at its level.

        Args:
            log_spectrogram: float32 (n_bins, n_frames, n_channels), dB; what is silent stays so.
            extractor: the LogSpectrogramExtractor of its frames.
            seed: of the noise, which all channels share, so that it does not part them.
            first_frame: where it begins in a longer one, whose parts fit together.
            peak: dB, of that longer one; None for this one's own.
        """
        peak = np.float32(log_spectrogram.max() if peak is None else peak)
        scatter = make_scatter(extractor, log_spectrogram.shape[1], seed, first_frame)
        added = self.amounts.ravel().take(classify(log_spectrogram, peak))
        added *= scatter[..., np.newaxis]
        added += np.float32(self.level_db)
        added *= np.clip((log_spectrogram - (peak - RANGE_DB)) / FADE_DB, 0, 1)
        added += log_spectrogram
        return np.where(log_spectrogram <= SILENCE_DB, np.float32(SILENCE_DB), added)

    def save(self, folder):
        """Write texture.json."""
        values = {"amounts": self.amounts.tolist(), "level_db": self.level_db}
        write_json(Path(folder) / TEXTURE_NAME, values)

    @classmethod
    def load(cls, folder):
        """The Texture in a model folder.

        Raises:
            FileNotFoundError: it has none.
            UserError: it is damaged, or of an earlier version.
        """
        path = Path(folder) / TEXTURE_NAME
        if not path.exists():
            raise FileNotFoundError(
                f"no {path}: complete the model with train.py --resume, or add --no-texture"
            )
        values = read_json(path)
        try:
            amounts, level_db = np.array(values["amounts"], np.float32), float(values["level_db"])
            is_valid = amounts.shape == SHAPE and math.isfinite(level_db)
            if not is_valid or not ((amounts >= 0) & (amounts <= MAX_AMOUNT)).all():
                raise UserError(f"it must hold {SHAPE} amounts in 0..{MAX_AMOUNT} and a level")
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            reason = f"damaged, or of an earlier version ({error})"
            raise UserError(f"{path} is {reason}: run train.py again") from error
        return cls(amounts, level_db)


def classify(log_spectrogram, peak):
    """The class of each cell, uint8 (n_bins, n_frames, n_channels), an index into SHAPE's cells.

    Args:
        log_spectrogram: float32 (n_bins, n_frames, n_channels), dB.
        peak: dB.
    """
    from scipy.ndimage import uniform_filter1d

    blur = functools.partial(uniform_filter1d, size=ROUGHNESS_BINS, axis=0, mode="nearest")
    depth = np.clip(peak - log_spectrogram, 0, np.float32(RANGE_DB))
    variance = blur(np.square(depth)) - np.square(blur(depth))
    classes = np.zeros(depth.shape, np.uint8)
    for threshold in DEPTHS_DB:
        classes += depth > threshold
    classes *= SHAPE[1]
    for threshold in ROUGHNESSES_DB:
        classes += variance > threshold**2
    return classes


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
    pairs = [*zip(log_spectrograms, reconstructed, strict=True)]
    classes, steps = zip(*(list_steps(*pair) for pair in pairs), strict=True)
    classes, steps = np.concatenate(classes), np.concatenate(steps, axis=1)
    noise = np.quantile(np.abs(np.diff(make_scatter(extractor, 1000, seed=1))), QUANTILE)
    amounts = np.full(SHAPE, find_missing(steps) / noise, np.float32)
    for index in range(amounts.size):
        members = steps[:, classes == index]
        if members.shape[1] >= MIN_CELLS:
            amounts.flat[index] = find_missing(members) / noise
    amounts = np.minimum(amounts, np.float32(MAX_AMOUNT))
    texture = Texture(amounts, 0.0)
    levels = []
    for original, quiet in pairs:
        powers = [
            np.exp(math.log(10) / 10 * spectrogram.astype(np.float64)).sum(
                where=original > SILENCE_DB
            )
            for spectrogram in (original, texture.apply(quiet, extractor))
        ]
        if min(powers) > 0:
            levels.append(10 * math.log10(powers[0] / powers[1]))
    return texture._replace(level_db=float(np.mean(levels)) if levels else 0.0)


def list_steps(original, reconstructed):
    """Of cells that are heard: (their classes, uint8 (n,); steps to them, float16 (2, n), dB)."""
    pair = np.stack([original, reconstructed])
    is_heard = (pair > SILENCE_DB).all(axis=0)
    sounds = is_heard[:, 1:] & is_heard[:, :-1]
    steps = np.abs(np.diff(pair, axis=2))[:, sounds]
    return classify(reconstructed, reconstructed.max())[:, 1:][sounds], steps.astype(np.float16)


def find_missing(steps):
    """How much smaller those of reconstructions are, in dB; steps as list_steps() returns them."""
    if steps.shape[1] == 0:
        return 0.0
    original, reconstructed = np.quantile(steps.astype(np.float32), QUANTILE, axis=1)
    return math.sqrt(max(original**2 - reconstructed**2, 0))  # as variances add
