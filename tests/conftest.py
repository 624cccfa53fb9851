import numpy as np
import pytest
import soundfile

import preprocess
from support import dataset

SAMPLE_RATE = 22050  # Hz


def make_tone(frequency=440.0, duration=1.0, sample_rate=SAMPLE_RATE, level=0.5):
    """A sine, float32 (n_samples,)."""
    time = np.arange(int(duration * sample_rate)) / sample_rate
    return (level * np.sin(2 * np.pi * frequency * time)).astype(np.float32)


def make_music(duration=3.0, seed=0):
    """Decaying partials over soft noise, float32 (n_samples,)."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(duration * SAMPLE_RATE)) / SAMPLE_RATE
    signal = 0.002 * rng.standard_normal(len(time))
    for frequency in rng.uniform(100, 3000, 12):
        signal += 0.05 * np.sin(2 * np.pi * frequency * time) * np.exp(-(time % 0.5) * 4)
    return signal.astype(np.float32)


def make_images(n=24, shape=(16, 12, 1), seed=0):
    """Smooth random images in [0.1, 0.9], float32 (n, *shape)."""
    rng = np.random.default_rng(seed)
    waves = rng.uniform(0.1, 0.7, (n, 2, 1, 1, shape[2]))
    rows, columns = np.mgrid[0 : shape[0], 0 : shape[1]][..., None]
    return (0.5 + 0.4 * np.sin(waves[:, 0] * rows + waves[:, 1] * columns)).astype(np.float32)


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
    """Settings of short, small pieces; fields can be given by name."""

    def make(**fields):
        values = {
            "format_version": dataset.FORMAT_VERSION, "sample_rate": SAMPLE_RATE,
            "frame_size": 256, "hop_length": 64, "duration": 0.3, "mono": True,
            "segments": "all", "top_db": preprocess.TOP_DB,
        }  # fmt: skip
        return dataset.Settings(**{**values, **fields})

    return make


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
