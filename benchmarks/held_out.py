"""The pieces of a folder that are held out, and how near their reconstructions sound.

In:  a folder that preprocess.py wrote, and the audio it was made from.
Out: images, their mean squared error, mel distances and levels in dB, and WAV files.

    split = Split("saved_data", ["*/x.wav"], seed=0)
    nearness = SoundComparison(split, n_pieces=60).measure(split.x_held_out)
"""

import fnmatch
import itertools
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np

import train
from autoencoder import weigh_rows
from generate import save_signals
from generation.evaluation import POOLED_FRAMES, measure_mel_distance
from generation.modes import make_file_names
from preprocess import Padder, make_pipeline
from soundgenerator import SoundGenerator
from support import dataset
from support.dataset import load_split
from support.errors import UserError
from support.spectrograms import to_amplitude
from training.splits import split_by_list, split_keys
from training.windows import Windows


class Split:
    """The pieces to train on, and those to hold out.

    Args:
        saved_data: folder that preprocess.py wrote.
        patterns: of the tracks to hold out, with * and ?; None: a seeded tenth of the tracks.
        model: a folder that train.py wrote, whose own split is taken without patterns: its test
            tracks are held out, or those it was validated on if it has none.
    Raises:
        UserError: all pieces would be held out, or none.
    """

    def __init__(self, saved_data, patterns, seed, model=None):
        features = dataset.Features.of(saved_data)
        self.settings, keys = features.settings, features.keys
        self.folder = features.audio_folder
        if patterns:
            parts = split_by_pattern(keys, patterns)
        elif model:
            parts = split_by_list(keys, load_split(Path(model) / "split.json"))
            parts["valid"] = parts["test"] or parts["valid"]
        else:
            parts = split_keys(features, None, train.VALIDATION_SPLIT, seed)
        training_keys, self.held_out_keys = parts["train"], parts["valid"]
        if not training_keys or not self.held_out_keys:
            n_held_out = len(self.held_out_keys)
            raise UserError(f"{n_held_out} of {len(keys)} pieces are held out: see --held_out")
        self.x_train = train.load_fsdd(features.path, keys=training_keys)
        self.x_held_out = train.load_fsdd(features.path, keys=self.held_out_keys)
        self.x_held_out = self.x_held_out.astype(np.float32)
        height = self.x_train.shape[1]
        self.row_weights = weigh_rows(height, self.settings.sample_rate / 2 / height)
        self.windows = Windows(
            self.x_train,
            features.list_ranges(training_keys),
            [*map(dataset.get_track, training_keys)],
            top_db=self.settings.top_db,
            seed=seed,
        )
        self.min_max_values = dataset.select_min_max_values(
            features.min_max_values, self.held_out_keys
        )

    def load_recording(self, key):
        """The signal that a piece was made from, at the length of a piece."""
        path = self.folder / dataset.get_track(key)
        signals = make_pipeline(self.settings).loader.load_pieces(path)
        signal = next(itertools.islice(signals, dataset.get_segment(key), None))
        return Padder().right_pad(signal, self.settings.n_samples - signal.shape[-1])


def split_by_pattern(keys, patterns):
    """The keys of each part, {part: [key]}; tracks that match any of the patterns are held out."""
    parts = {"train": [], "valid": []}
    for key in keys:
        track = dataset.get_track(key)
        is_held_out = any(fnmatch.fnmatchcase(track, pattern) for pattern in patterns)
        parts["valid" if is_held_out else "train"].append(key)
    return parts


class Nearness(NamedTuple):
    """How near sounds are to recordings, on average."""

    mel_distance_db: float
    pooled_mel_distance_db: float  # of mel spectrograms averaged over POOLED_FRAMES
    level_db: float  # above the recordings


class SoundComparison:
    """Measures how near the sounds of held-out images are to what was recorded.

    Args:
        n_pieces: how many held-out pieces, at most, are compared; evenly spaced.
    """

    def __init__(self, split, n_pieces):
        n_held_out = len(split.held_out_keys)
        places = np.linspace(0, n_held_out - 1, min(n_pieces, n_held_out))
        self.indices = places.round().astype(int)
        self.recordings = [split.load_recording(split.held_out_keys[i]) for i in self.indices]
        self.min_max_values = [split.min_max_values[i] for i in self.indices]
        self.names = make_file_names([split.held_out_keys[i] for i in self.indices])
        self.generator = SoundGenerator.of(split.settings, None)

    def measure(self, images, detail=None, save_dir=None):
        """How near images' sounds are to the recordings.

        Args:
            images: float32 (n, height, width, channels), of all held-out pieces.
            detail: the Detail that they lost, or None.
            save_dir: folder to write the sounds into, or None.
        Returns:
            a Nearness.
        """
        self.generator.detail = detail
        chosen = map(self.generator.add_detail, images[self.indices])
        signals = self.generator.convert_spectrograms_to_audio(chosen, self.min_max_values)
        return self._measure_signals(signals, save_dir)

    def save_recordings(self, save_dir):
        """Write the recordings, under the names that measure() gives their reconstructions."""
        save_signals(self.recordings, save_dir, self.names, self.generator.sample_rate)

    def measure_zero_phase(self, images):
        """The same without phase recovery: the inverse transform of the amplitude alone."""
        generator, signals = self.generator, []
        for image, min_max in zip(images[self.indices], self.min_max_values, strict=True):
            signals.append(
                librosa.istft(
                    to_amplitude(generator.restore_log_spectrogram(image, min_max)),
                    hop_length=generator.hop_length,
                    n_fft=generator.frame_size,
                    length=generator.n_samples,
                )
            )
        return self._measure_signals(signals)

    def _measure_signals(self, signals, save_dir=None):
        sample_rate = self.generator.sample_rate
        if save_dir is not None:
            save_signals(signals, save_dir, self.names, sample_rate)
        pairs = [*zip(self.recordings, signals, strict=True)]
        levels = [
            10 * np.log10(np.square(signal).sum() / np.square(recording).sum())
            for recording, signal in pairs
            if recording.any() and np.any(signal)
        ]
        return Nearness(
            *(
                float(np.mean([measure_mel_distance(*pair, sample_rate, n) for pair in pairs]))
                for n in (1, POOLED_FRAMES)
            ),
            float(np.mean(levels)),
        )


def measure_error(images, reconstructed, row_weights):
    """The mean squared error that train.py minimises, whose rows count by their weights."""
    squares = (np.square(a - b) for a, b in zip(images, reconstructed, strict=True))
    return float(np.mean([(row_weights * square).mean() for square in squares]))
