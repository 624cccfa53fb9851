"""Logs of a run to watch and hear it by.

In:  the errors of each epoch, and the autoencoder that learns.
Out: model/logs for TensorBoard.

    tensorboard --logdir model/logs
"""

import math
from pathlib import Path

import numpy as np

from support.dataset import count_samples
from support.files import make_printable, write_atomically

N_LOGGED = 10  # times in a run that pictures and sounds of pieces are logged
N_LOGGED_PIECES = 3
LOGS_README = "Look at these logs with: tensorboard --logdir .\n"


def make_logger(folder, images, keys, min_max_values, settings, epochs):
    """A Logger of a few pieces, evenly spaced."""
    from soundgenerator import SoundGenerator

    chosen = np.linspace(0, len(keys) - 1, min(N_LOGGED_PIECES, len(keys))).astype(int)
    n_samples = count_samples(settings.sample_rate, settings.duration)
    generator = SoundGenerator(
        None, settings.hop_length, frame_size=settings.frame_size, n_samples=n_samples
    )
    ranges = [min_max_values[keys[index]] for index in chosen]
    names = [make_printable(keys[index]) for index in chosen]
    return Logger(folder, images[chosen], names, ranges, generator, settings.sample_rate, epochs)


class Logger:
    """Writes errors, the learning rate, pictures and sounds for TensorBoard.

    Args:
        folder: where to; logs of an earlier run in it are deleted, unless this one is resumed.
        images: float32 (n, height, width, channels), in [0, 1]: the pieces to see and hear.
        names: one a piece.
        min_max_values: {"min": dB, "max": dB}, one a piece.
        generator: a SoundGenerator for them.
        sample_rate: Hz.
        epochs: of the run.
    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder, images, names, min_max_values, generator, sample_rate, epochs):
        write_atomically(Path(folder) / "README.txt", LOGS_README.encode())
        self.folder = Path(folder)
        self.writer = None
        self.images = images
        self.names = names
        self.min_max_values = min_max_values
        self.generator = generator
        self.sample_rate = sample_rate
        self.shown = {1, *np.linspace(1, epochs, N_LOGGED).round().astype(int).tolist()}

    def _open(self, step):
        from tensorboardX import SummaryWriter

        if step == 1:
            for path in sorted(self.folder.glob("events.out.tfevents.*")):
                path.unlink()
        self.writer = SummaryWriter(str(self.folder), purge_step=step)
        self._log_sounds("original", self.images, step - 1)

    def log(self, row, autoencoder):
        """Log an epoch's row of the history and, now and then, what an autoencoder makes."""
        step = row["epoch"]
        if not self.writer:
            self._open(step)
        self.writer.add_scalar("error/training", row["loss"], step)
        if not math.isnan(row["val_loss"]):
            self.writer.add_scalar("error/validation", row["val_loss"], step)
        self.writer.add_scalar("learning_rate", row["learning_rate"], step)
        if step in self.shown:
            reconstructed, _ = autoencoder.reconstruct(self.images)
            for name, *pair in zip(self.names, self.images, reconstructed, strict=True):
                picture = color_spectrogram(np.concatenate(pair[::-1]))
                self.writer.add_image(f"original_above/{name}", picture, step, dataformats="HWC")
            self._log_sounds("reconstructed", reconstructed, step)
        self.writer.flush()

    def _log_sounds(self, kind, images, step):
        signals = self.generator.convert_spectrograms_to_audio(images, self.min_max_values)
        for name, signal in zip(self.names, signals, strict=True):
            mono = np.atleast_2d(signal).mean(axis=0)
            mono = mono / max(1, np.abs(mono).max())
            self.writer.add_audio(f"{kind}/{name}", mono, step, self.sample_rate)


def color_spectrogram(image):
    """uint8 (height, width, 3) of a normalised spectrogram, low frequencies at the bottom."""
    from matplotlib import colormaps

    return colormaps["magma"](image[::-1, :, 0], bytes=True)[..., :3]
