"""What generate.py reads: a model, the features that it may be compared on, and recordings.

In:  folders and audio files.
Out: Sources; signals, as the model's features were loaded.

    sources = Sources(Path("model"), Features.of("saved_data"))
"""

import dataclasses
import functools
import itertools
import sys
from pathlib import Path

import numpy as np

from preprocess import Loader, check_length, make_pipeline
from soundgenerator import SoundGenerator
from support import dataset
from support.audio import decode, list_audio_files
from support.dataset import Features, add_channel_axis
from support.errors import UserError
from support.files import make_printable
from support.prior import Prior
from support.settings import Settings
from support.spectrograms import to_image

SOME_RATE = 22050  # Hz, at which it is tried whether a file holds audio
SAME_IMAGE = 1e-3  # mean absolute difference, in [0, 1]: more than float16 rounds


@dataclasses.dataclass
class Sources:
    """What generate.py may read from. A model is read once, and stays if another replaces it."""

    model: Path  # folder
    features: Features

    @functools.cached_property
    def settings(self):
        """The Settings of the model's features."""
        return Settings.load(self.model / "settings.json", "run train.py --resume")

    @functools.cached_property
    def prior(self):
        """The model's Prior."""
        return Prior.load(self.model)

    @functools.cached_property
    def _generator(self):
        return SoundGenerator.load(self.model)

    def make_generator(self, seed, with_detail):
        """The model's SoundGenerator, which is loaded once."""
        detail = self._generator.detail if with_detail else None
        return dataclasses.replace(self._generator, seed=seed, detail=detail)

    def check_settings(self):
        """Raise a UserError if the model was trained on features of other settings."""
        if self.features.settings != self.settings:
            raise UserError(
                f"{self.model} was trained on features of other settings than "
                f"{self.features.path}: run train.py again"
            )


class Recordings:
    """The audio that features were made of, as far as it is still there and still the same.

    Args:
        features: the Features.
    """

    def __init__(self, features):
        self._pipeline = make_pipeline(features.settings)
        self._folder = features.audio_folder

    def load(self, key, spectrogram):
        """What a feature was made of, or None if no such audio is there.

        Args:
            spectrogram: the feature, float32 (n_bins, n_frames, n_channels), in [0, 1].
        Returns:
            float32 (n_samples,) or (2, n_samples).
        """
        if self._folder is None:
            return None
        try:
            signals = self._pipeline.load_extended(self._folder / dataset.get_track(key))
            signal = next(itertools.islice(signals, dataset.get_segment(key), None), None)
        except (OSError, UserError):
            return None
        if signal is None:
            return None
        extractor = self._pipeline.extractor
        log_spectrogram = add_channel_axis(extractor.extract(signal, is_extended=True))
        image, _ = to_image(log_spectrogram, self._pipeline.normaliser)
        if image.shape != spectrogram.shape or np.abs(image - spectrogram).mean() >= SAME_IMAGE:
            return None
        half_frame = extractor.frame_size // 2
        return signal[..., half_frame:-half_frame]


def load_song(sound_generator, path, remarks=None):
    """The signal of a whole audio file, as a SoundGenerator's features were loaded.

    What the user should know of it is printed, and appended to the remarks.

    Raises:
        UserError: it cannot be read, or is shorter than a frame; it names the file.
    """
    remarks = [] if remarks is None else remarks
    rate, n_channels = sound_generator.sample_rate, sound_generator.autoencoder.input_shape[2]
    loader = Loader(rate, sound_generator.n_samples / rate, mono=n_channels == 1)
    try:
        signal = loader.load_whole(path, remarks)
        check_length(signal, sound_generator.frame_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    for remark in remarks:
        say(f"note: {path} {remark}", sys.stderr)
    return signal


def list_songs(path):
    """The path of a file, or those of the audio below a folder; what else it holds is named."""
    if not Path(path).is_dir():
        return [path]
    stamps, refused = list_audio_files(path)
    songs = []
    for name in stamps:
        try:
            next(decode(Path(path, name), SOME_RATE, mono=True))
            songs.append(str(Path(path, name)))
        except UserError as error:
            refused[name] = error
    for name, reason in refused.items():
        say(f"skipped {Path(path, name)}: {reason}", sys.stderr)
    if not songs:
        raise UserError(f"{path} holds no audio")
    return songs


def say(text, file=None):
    """Print a line above the progress bars, on stdout if no file is given."""
    from tqdm import tqdm

    with tqdm.external_write_mode():
        print(make_printable(text), file=file or sys.stdout, flush=True)
