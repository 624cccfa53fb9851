import numpy as np
import pytest
from conftest import SAMPLE_RATE, make_music, make_tone

import preprocess
from soundgenerator import SoundGenerator, measure_mel_distance, measure_spectral_convergence


class Identity:
    """An autoencoder that loses nothing."""

    def reconstruct(self, images):
        return images, np.zeros((len(images), 1))


def analyse(signal, frame_size=1024, hop_length=256):
    """The normalised spectrogram of a signal and its min-max values."""
    log_spectrogram = preprocess.LogSpectrogramExtractor(frame_size, hop_length).extract(signal)
    min_max = {"min": float(log_spectrogram.min()), "max": float(log_spectrogram.max())}
    return preprocess.MinMaxNormaliser(0, 1).normalise(log_spectrogram), min_max


def resynthesise(signal, frame_size=1024, hop_length=256, target_shape=None):
    spectrogram, min_max = analyse(signal, frame_size, hop_length)
    if target_shape:
        image = spectrogram[..., None] if spectrogram.ndim == 2 else spectrogram
        spectrogram = preprocess.resize_spectrogram(image, target_shape)
    generator = SoundGenerator(
        Identity(), hop_length, frame_size=frame_size, n_samples=signal.shape[-1]
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

    amplitude = generator.restore_amplitude(spectrogram, min_max)
    assert again.shape == music.shape
    assert measure_spectral_convergence(amplitude, again, 1024, 256) < -20


def test_restore_amplitude_undoes_the_extraction():
    music = make_music()
    spectrogram, min_max = analyse(music)
    generator = SoundGenerator(None, 256, n_samples=len(music))

    amplitude = generator.restore_amplitude(spectrogram, min_max)

    again = preprocess.LogSpectrogramExtractor(1024, 256).extract(music)
    assert amplitude.shape == (1, 513, 259)
    assert not amplitude[0, -1].any()
    restored_db = 20 * np.log10(amplitude[0, :-1])
    np.testing.assert_allclose(restored_db, again, atol=1e-3)  # float32 at 80 dB


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


def test_mel_distance_is_zero_for_itself_and_the_gain_for_a_gain():
    tone = make_music()

    assert measure_mel_distance(tone, tone, SAMPLE_RATE) == 0
    # 6 dB of gain, less where both lie at the floor
    assert 5 < measure_mel_distance(tone, 2 * tone, SAMPLE_RATE) <= 6.03
