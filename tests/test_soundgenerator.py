import numpy as np
import pytest

import preprocess
from generation.evaluation import measure_spectral_convergence
from helpers import SAMPLE_RATE, make_music, make_tone
from soundgenerator import SoundGenerator, join_windows
from support.spectrograms import to_amplitude, to_image


class Identity:
    """An autoencoder that loses nothing."""

    def __init__(self, input_shape):
        self.input_shape = input_shape

    def reconstruct(self, images):
        assert images.shape[1:3] == tuple(self.input_shape[:2])
        return images, np.zeros((len(images), 1))


def analyse(signal, frame_size=1024, hop_length=256):
    """The normalised spectrogram of a signal and its min-max values."""
    log_spectrogram = preprocess.LogSpectrogramExtractor(frame_size, hop_length).extract(signal)
    return to_image(log_spectrogram, preprocess.MinMaxNormaliser(0, 1))


def resynthesise(signal, frame_size=1024, hop_length=256, target_shape=None):
    spectrogram, min_max = analyse(signal, frame_size, hop_length)
    generator = SoundGenerator(
        Identity(target_shape or spectrogram.shape),
        hop_length,
        frame_size=frame_size,
        n_samples=signal.shape[-1],
    )
    (again,), _ = generator.generate([spectrogram], [min_max])
    return again


def measure_pitch(signal):
    spectrum = np.abs(np.fft.rfft(signal * np.hanning(len(signal)), 1 << 19))
    return spectrum.argmax() * SAMPLE_RATE / (1 << 19)


@pytest.mark.parametrize(
    "frame_size, hop_length, target_shape",
    [(1024, 256, None), (512, 256, None), (1024, 256, (256, 128))],
)
def test_tone_comes_back_at_its_pitch_and_level(frame_size, hop_length, target_shape):
    tone = make_tone(440, 2.97)

    again = resynthesise(tone, frame_size, hop_length, target_shape)

    middle = slice(5000, -5000)  # the ends fade in the first and last frames
    level_db = 20 * np.log10(again[middle].std() / tone[middle].std())
    assert abs(measure_pitch(again) - 440) < 1
    assert abs(level_db) < 1
    assert np.abs(again).max() < 0.8  # the tone's 0.5, and its abrupt ends


def test_music_comes_back_close_to_its_spectrogram():
    music = make_music()
    spectrogram, min_max = analyse(music)
    generator = SoundGenerator(None, 256, n_samples=len(music))

    (again,) = generator.convert_spectrograms_to_audio([spectrogram], [min_max])

    amplitude = to_amplitude(generator.restore_log_spectrogram(spectrogram, min_max))
    assert again.shape == music.shape
    assert measure_spectral_convergence(amplitude, again, 1024, 256) < -20


def test_a_log_spectrogram_is_restored_as_it_was_extracted():
    music = make_music()
    spectrogram, min_max = analyse(music)
    generator = SoundGenerator(None, 256, n_samples=len(music))

    log_spectrogram = generator.restore_log_spectrogram(spectrogram, min_max)

    expected = preprocess.LogSpectrogramExtractor(1024, 256).extract(music)
    assert log_spectrogram.shape == (512, 259, 1)
    np.testing.assert_allclose(log_spectrogram[..., 0], expected, atol=1e-3)  # float32 at 80 dB


def test_silence_comes_back_silent():
    assert not resynthesise(np.zeros(30000, np.float32)).any()


def test_stereo_channels_come_back_apart():
    stereo = np.stack([make_tone(440, 1.0), make_tone(1000, 1.0)])

    again = resynthesise(stereo)

    assert again.shape == stereo.shape
    assert abs(measure_pitch(again[0]) - 440) < 1
    assert abs(measure_pitch(again[1]) - 1000) < 1


@pytest.mark.parametrize("n_samples", [2205, 10001, 65488])
def test_signal_has_the_originals_length(n_samples):
    assert len(resynthesise(make_music()[:n_samples])) == n_samples


def test_hop_must_lie_within_the_frame():
    with pytest.raises(ValueError, match="hop_length must be in 1..512"):
        SoundGenerator(None, 0)


def test_joined_windows_of_one_spectrogram_give_it_back():
    rng = np.random.default_rng(0)
    whole = rng.uniform(-80, 0, (8, 100, 2)).astype(np.float32)
    windows = [whole[:, start : start + 20] for start in range(0, 81, 10)]

    joined = join_windows(windows, 9, 10, 100)

    np.testing.assert_allclose(joined, whole, atol=1e-4)


def test_joined_windows_have_no_seam():
    rng = np.random.default_rng(0)
    n_frames, hop = 64, 32
    windows = rng.normal(-40, 5, (300, 32, n_frames, 1)).astype(np.float32)

    joined = join_windows(windows, 300, hop, 299 * hop + n_frames)[..., 0]

    level = joined.mean(axis=0)
    flux = np.abs(np.diff(joined, axis=1)).mean(axis=0)
    place = np.arange(hop, 299 * hop)
    border = place % hop < 2
    assert abs(level[place[border]].mean() - level[place[~border]].mean()) < 0.1  # dB
    # Noise that is mixed is smoother than noise alone: by the root of 2 at most.
    assert 0.7 < flux[place[border]].mean() / flux[place[~border]].mean() < 1.42


@pytest.mark.parametrize("n_samples", [3000, 6615, 40000])
def test_a_song_of_any_length_goes_through_the_autoencoder(n_samples):
    music = make_music(2.0)[:n_samples]
    generator = SoundGenerator(Identity((128, 104, 1)), 64, frame_size=256, n_samples=6615)

    sound, reconstructed, log_spectrogram, error = generator.reconstruct(music)

    assert sound.shape == music.shape and error == 0
    loud = log_spectrogram > log_spectrogram.max() - 60
    np.testing.assert_allclose(reconstructed[loud], log_spectrogram[loud], atol=0.5)
