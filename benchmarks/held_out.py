"""The held-out pieces of a folder of features, and the ear that compares their sounds.

In:  a folder that preprocess.py wrote, and the audio it was made from.
Out: arrays and figures for the benchmarks beside this file.

    split = Split("saved_data", ["*/x.wav"], seed=0)
"""

import fnmatch
import sys
from pathlib import Path

import numpy as np

import preprocess
import train
from support import dataset
from support.audio import list_audio_files
from support.files import read_json
from training.pieces import Windows
from training.splits import split_by_track


class Split:
    """The pieces of a folder, training and held out, and the sound of the held-out ones."""

    def __init__(self, saved_data, patterns, seed):
        spectrograms_path = Path(saved_data) / dataset.SPECTROGRAMS_SAVE_DIR
        self.settings = dataset.load_settings(spectrograms_path / "settings.json")
        values = dataset.load_min_max_values(dataset.get_min_max_path(saved_data))
        keys = dataset.list_keys(spectrograms_path)
        if patterns:
            held = np.array([is_held_out(key, patterns) for key in keys])
        else:
            held = split_by_track(keys, train.VALIDATION_SPLIT, seed)
        if held.all() or not held.any():
            raise ValueError(f"{held.sum()} of {len(keys)} pieces are held out: see --held_out")
        self.held_keys = [key for key, is_held in zip(keys, held, strict=True) if is_held]
        training_keys = [key for key, is_held in zip(keys, held, strict=True) if not is_held]
        self.x_train = train.load_fsdd(spectrograms_path, None, keys=training_keys)
        self.x_held = train.load_fsdd(spectrograms_path, None, keys=self.held_keys)
        self.windows = Windows(self.x_train, training_keys, values, self.settings.top_db)
        self.min_max_values = [values[key] for key in self.held_keys]
        source = read_json(Path(saved_data) / "source.json")
        self.audio_files_dir = Path(source["audio_files_dir"])

    def load_heard(self, n_heard):
        """Indices of some held-out pieces, evenly spaced, and their recorded signals."""
        count = min(n_heard, len(self.held_keys))
        indices = np.linspace(0, len(self.held_keys) - 1, count).round().astype(int)
        loader = preprocess.Loader(
            self.settings.sample_rate, self.settings.duration, self.settings.mono
        )
        signals = []
        for index in indices:
            key = self.held_keys[index]
            path = self.audio_files_dir / dataset.get_track(key)
            signal = loader.load_piece(path, dataset.get_segment(key))
            missing = loader.n_samples - signal.shape[-1]
            signals.append(preprocess.Padder().right_pad(signal, missing))
        return indices, signals


def load_all(audio_files_dir, load):
    """What a function makes of each audio file below a folder; what it cannot read is named.

    Args:
        load: path to anything, or to a ValueError.
    """
    loaded = []
    for name in list_audio_files(audio_files_dir)[0]:
        try:
            loaded.append(load(Path(audio_files_dir) / name))
        except ValueError as error:
            print(f"skipped {name!r}: {error}", file=sys.stderr)
    return loaded


def is_held_out(key, patterns):
    track = dataset.get_track(key)
    return any(fnmatch.fnmatchcase(track, pattern) for pattern in patterns)


class Ear:
    """Mel distances of reconstructions from what was recorded."""

    def __init__(self, split, n_heard):
        from soundgenerator import SoundGenerator

        self.indices, self.signals = split.load_heard(n_heard)
        self.settings = split.settings
        self.min_max_values = [split.min_max_values[index] for index in self.indices]
        self.generator = SoundGenerator(
            None, split.settings.hop_length, frame_size=split.settings.frame_size,
            n_samples=self.signals[0].shape[-1],
        )  # fmt: skip

    def measure(self, images, invert=None):
        """The mean mel distance in dB of held-out images' sounds.

        Args:
            images: float32 (n, height, width, channels), all held-out pieces.
            invert: amplitude to signal, instead of the SoundGenerator's.
        """
        from soundgenerator import measure_mel_distance

        distances = []
        for index, signal, min_max in zip(
            self.indices, self.signals, self.min_max_values, strict=True
        ):
            amplitude = self.generator.restore_amplitude(images[index], min_max)
            sound = (invert or self.generator.invert)(amplitude)
            distances.append(measure_mel_distance(signal, sound, self.settings.sample_rate))
        return float(np.mean(distances))

    def invert_zero_phase(self, amplitude):
        """What earlier programs called Griffin-Lim: the inverse transform of the magnitude."""
        import librosa

        return librosa.istft(
            amplitude, hop_length=self.generator.hop_length, n_fft=self.generator.frame_size,
            length=self.generator.n_samples,
        )  # fmt: skip


def measure_error(images, reconstructed):
    """The mean squared error of two arrays of one shape."""
    return float(np.square(images - reconstructed).mean(dtype=np.float64))
