"""The plain preprocessing loop that librosa's users write; preprocessing.py times it.

In:  a flat folder of audio.
Out: <audio path>.<segment>.npy files, and min_max_values.pkl.

    python -m benchmarks.serial_loop my_music saved_plain
"""

import pickle
from pathlib import Path

import librosa
import numpy as np

from preprocess import DURATION, FRAME_SIZE, HOP_LENGTH, SAMPLE_RATE
from support.command_line import make_parser, run_script
from support.settings import count_samples


def preprocess_serially(audio_files_dir, saved_data):
    """Load, stft, decibels, min-max and np.save, one file after the other."""
    saved_data.mkdir(parents=True, exist_ok=True)
    n_samples = count_samples(SAMPLE_RATE, DURATION)
    min_max_values = {}
    for path in sorted(audio_files_dir.iterdir()):
        signal, _ = librosa.load(path, sr=SAMPLE_RATE)
        for index, start in enumerate(range(0, len(signal), n_samples)):
            piece = signal[start : start + n_samples]
            if index > 0 and 2 * len(piece) < n_samples:
                break
            piece = np.pad(piece, (0, n_samples - len(piece)))
            stft = librosa.stft(piece, n_fft=FRAME_SIZE, hop_length=HOP_LENGTH)
            log_spectrogram = librosa.amplitude_to_db(np.abs(stft[:-1]))
            low, high = log_spectrogram.min(), log_spectrogram.max()
            key = f"{path.name}.{index:03d}.npy"
            min_max_values[key] = {"min": float(low), "max": float(high)}
            np.save(saved_data / key, (log_spectrogram - low) / (high - low))
    (saved_data / "min_max_values.pkl").write_bytes(pickle.dumps(min_max_values))


def get_parser():
    parser = make_parser(__doc__)
    parser.add_argument("audio_files_dir", type=Path, help="folder of audio")
    parser.add_argument("saved_data", type=Path, help="folder to write")
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    preprocess_serially(options.audio_files_dir, options.saved_data)


if __name__ == "__main__":
    run_script(main)
