"""Logs of a run to watch and hear it by.

In:  the losses of each epoch, and the autoencoder that learns.
Out: model/logs for TensorBoard; in it original.wav and reconstructed.wav, of one piece.

    tensorboard --logdir model/logs
"""

import io
import math
import time
from pathlib import Path

import numpy as np
import soundfile

from autoencoder import keras
from soundgenerator import SoundGenerator
from support.bands import find_mel_rows
from support.files import make_printable, write_atomically

N_LOGGED = 10  # times in a run that pictures and sounds of pieces are logged
N_LOGGED_PIECES = 3


class TensorBoard(keras.callbacks.Callback):
    """Writes losses, the learning rate, pictures and sounds.

    Args:
        folder: to write; TensorBoard shows what an earlier run logged there up to this one's start.
        windows: Windows; a few of their pieces are logged.
        keys: the key of each piece.
    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder, windows, keys, settings):
        super().__init__()
        Path(folder).mkdir(parents=True, exist_ok=True)
        chosen = np.linspace(0, len(keys) - 1, min(N_LOGGED_PIECES, len(keys))).astype(int)
        self.folder = Path(folder)
        self.images = windows.cut(chosen)
        self.names = [make_printable(keys[index]) for index in chosen]
        peaks = windows.peaks[chosen].astype(float)
        self.min_max_values = [{"min": peak - windows.top_db, "max": peak} for peak in peaks]
        self.sample_rate = settings.sample_rate
        self.sound_generator = SoundGenerator.of(settings, None)
        self.writer = None

    def _open(self, step):
        # Not SummaryWriter: its thread dies if the disk is full, and the run would wait for it.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self.writer = EventsWriter(str(self.folder / "events"))
        start = SessionLog(status=SessionLog.START)  # TensorBoard drops earlier events from here on
        self.writer.write_event(Event(wall_time=time.time(), step=step, session_log=start))
        self._log_sounds("original", self.images, step - 1)

    def _log(self, summary, step):
        from tensorboardX.proto.event_pb2 import Event

        self.writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def on_epoch_end(self, epoch, logs):
        try:
            self._log_epoch(epoch, logs)
        except OSError as error:  # which does not name the file if the disk is full
            raise OSError(error.errno, error.strerror, str(self.folder)) from error

    def _log_epoch(self, epoch, logs):
        from tensorboardX.summary import scalar

        step, n_epochs = epoch + 1, self.params["epochs"]
        if not self.writer:
            self._open(step)
        self._log(scalar("loss/training", logs["loss"]), step)
        if math.isfinite(logs.get("val_loss", math.nan)):
            self._log(scalar("loss/validation", logs["val_loss"]), step)
        self._log(scalar("learning_rate", float(self.model.optimizer.learning_rate)), step)
        if step in {1, *np.linspace(1, n_epochs, N_LOGGED).round().astype(int).tolist()}:
            self._log_pieces(step)
        self.writer.flush()

    def _log_pieces(self, step):
        from tensorboardX.summary import image

        reconstructed, _ = self.autoencoder.reconstruct(self.images)
        rows = find_mel_rows(self.images.shape[1], self.sample_rate)
        for name, *pair in zip(self.names, self.images, reconstructed, strict=True):
            picture = color_spectrogram(np.concatenate([each[rows] for each in pair[::-1]]))
            self._log(image(f"original_above/{name}", picture, dataformats="HWC"), step)
        self._log_sounds("reconstructed", reconstructed, step)

    def _log_sounds(self, kind, images, step):
        from tensorboardX.summary import audio

        signals = self.sound_generator.convert_spectrograms_to_audio(images, self.min_max_values)
        for name, signal in zip(self.names, signals, strict=True):
            mono = np.atleast_2d(signal).mean(axis=0)
            mono = mono / max(1, np.abs(mono).max())
            self._log(audio(f"{kind}/{name}", mono, self.sample_rate), step)
        buffer = io.BytesIO()  # of the last one, for the app
        soundfile.write(buffer, mono, self.sample_rate, format="WAV")
        write_atomically(self.folder / f"{kind}.wav", buffer.getbuffer())


def color_spectrogram(image):
    """uint8 (height, width, 3) of a normalised spectrogram, low frequencies at the bottom."""
    from matplotlib import colormaps

    return colormaps["magma"](image[::-1, :, 0], bytes=True)[..., :3]
