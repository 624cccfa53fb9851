import numpy as np
import pytest
import soundfile

import helpers
import preprocess
from helpers import SAMPLE_RATE


@pytest.fixture
def write_audio(tmp_path):
    """Writes a signal, (n_samples,) or (n_samples, n_channels), below tmp_path/audio."""

    def write(name, signal, sample_rate=SAMPLE_RATE, **keywords):
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, signal, sample_rate, **keywords)
        return path

    return write


@pytest.fixture
def make_settings():
    """Makes Settings of short, small pieces; fields can be given by name."""
    return helpers.make_settings


@pytest.fixture
def spectrograms(tmp_path):
    """Six random pieces of three tracks, float32 (16, 12) each."""
    rng = np.random.default_rng(0)
    saver = preprocess.Saver(tmp_path / "spectrograms", tmp_path)
    for track in ("a/x.wav", "b/x.wav", "c.wav"):
        for segment in range(2):
            image = rng.random((16, 12), np.float32)
            saver.save_feature(image, f"{track}.{segment:03d}.npy")
    return tmp_path / "spectrograms"
