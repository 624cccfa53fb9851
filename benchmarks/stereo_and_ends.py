"""What phase recovery does to stereo, and to the end of a sound.

In:  a folder of audio; its spectrograms, untouched by any autoencoder, are inverted.
Out: a table on stdout: of pairs of recordings panned against each other, the correlation of left
     and right and the level of their sum; of sounds of many lengths, the level of the last frame.

    python -m benchmarks.stereo_and_ends --audio_files_dir my_music
"""

import librosa
import numpy as np

from benchmarks.audio import load_all
from generation.evaluation import measure_mel_distance
from preprocess import AUDIO_FILES_DIR, SAMPLE_RATE, Loader
from support.command_line import make_parser, run_script
from support.griffin_lim import GriffinLim

DURATION = 6.0  # seconds of a recording
PANNING = ((0.8, 0.45), (0.55, 0.75))  # gains of two recordings in the left and in the right
STEREO_FRAME = (1024, 256)  # frame_size, hop_length
END_FRAMES = ((2048, 1024), (1024, 512), (512, 256))
N_LENGTHS = 20
SEED = 0


def recover(signal, frame_size, hop_length):
    """A signal, (n_channels, n_samples), through its amplitude spectrogram and back."""
    stft = librosa.stft(signal, n_fft=frame_size, hop_length=hop_length)
    griffin_lim = GriffinLim(frame_size, hop_length)
    return np.atleast_2d(griffin_lim.invert(np.abs(stft), signal.shape[-1]))


def print_stereo(signals):
    for index, first in enumerate(signals):
        second = signals[(index + 1) % len(signals)]
        stereo = np.array(PANNING, np.float32) @ np.stack([first, second])
        found = recover(stereo, *STEREO_FRAME)
        correlations = [float(np.corrcoef(pair)[0, 1]) for pair in (stereo, found)]
        sums = stereo.mean(axis=0), found.mean(axis=0)
        distance = measure_mel_distance(*sums, SAMPLE_RATE)
        print(
            f"pair {index + 1}: correlation {correlations[0]:.3f} becomes {correlations[1]:.3f}, "
            f"the sum {measure_level(*sums):+.2f} dB in level and {distance:.2f} dB in mel distance"
        )


def print_ends(signals):
    rng = np.random.default_rng(SEED)
    for frame_size, hop_length in END_FRAMES:
        changes = []
        for n_cut in rng.integers(0, 2 * frame_size, N_LENGTHS):
            for signal in signals:
                cut = signal[np.newaxis, : len(signal) - n_cut]
                found = recover(cut, frame_size, hop_length)
                changes.append(measure_level(cut[:, -frame_size:], found[:, -frame_size:]))
        print(
            f"{frame_size}/{hop_length}: the last frame of {len(changes)} sounds of {N_LENGTHS} "
            f"lengths changes by {np.mean(changes):+.2f} dB on average, {max(changes):+.2f} dB "
            "at most"
        )


def measure_level(reference, signal):
    """The energy of a signal in dB above that of a reference."""
    return float(10 * np.log10(np.square(signal).sum() / np.square(reference).sum()))


def get_parser():
    parser = make_parser(__doc__)
    parser.add_argument("--audio_files_dir", default=AUDIO_FILES_DIR, help="folder of audio")
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    loader = Loader(SAMPLE_RATE, DURATION, True)
    signals = [
        signal
        for signal in load_all(options.audio_files_dir, loader.load)
        if len(signal) == loader.n_samples and signal[-loader.n_samples // 8 :].any()
    ]
    print_stereo(signals)
    print_ends(signals)


if __name__ == "__main__":
    run_script(main)
