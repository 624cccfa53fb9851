import librosa
import numpy as np
import pytest

import preprocess
import soundgenerator
from generation.evaluation import measure_spectral_convergence
from helpers import SAMPLE_RATE, make_music, make_tone
from soundgenerator import Sketch, SoundGenerator, join_windows
from support.spectrograms import to_amplitude, to_image
from support.texture import Texture


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


def test_a_log_spectrogram_is_restored_as_it_was_extracted_but_silent_at_its_floor():
    music = make_music()
    spectrogram, min_max = analyse(music)
    generator = SoundGenerator(None, 256, n_samples=len(music))

    log_spectrogram = generator.restore_log_spectrogram(spectrogram, min_max)

    expected = preprocess.LogSpectrogramExtractor(1024, 256).extract(music)
    expected[expected == expected.min()] = -100
    assert log_spectrogram.shape == (512, 259, 1)
    np.testing.assert_allclose(log_spectrogram[..., 0], expected, atol=1e-3)  # float32 at 80 dB


def test_a_silent_part_of_a_piece_stays_silent():
    music = make_music()
    music[30000:40000] = 0

    again = resynthesise(music)

    assert not again[31024:38976].any()


def panned(seed=0):
    """Two recordings between the loudspeakers, (2, n_samples)."""
    first, second = make_music(3.0, seed), make_music(3.0, seed + 1)
    return np.stack([0.8 * first + 0.45 * second, 0.55 * first + 0.75 * second])


def test_what_is_panned_stays_where_it_was():
    stereo = panned()

    again = resynthesise(stereo)

    correlations = [np.corrcoef(signal)[0, 1] for signal in (stereo, again)]
    assert abs(correlations[0] - correlations[1]) < 0.05
    powers = [np.square(signal.mean(axis=0)).mean() for signal in (stereo, again)]
    assert abs(10 * np.log10(powers[1] / powers[0])) < 0.5  # dB, of the sum


@pytest.mark.parametrize("frame_size, hop_length", [(2048, 1024), (1024, 512), (512, 256)])
@pytest.mark.parametrize("n_samples", [60 * 1024 + 1023, 60 * 1024 + 511, 60 * 1024 + 300])
def test_a_piece_does_not_end_with_a_click(frame_size, hop_length, n_samples):
    music = make_music(3.0)[:n_samples]

    again = resynthesise(music, frame_size, hop_length)

    powers = [np.square(signal[-frame_size:]).mean() for signal in (music, again)]
    assert 10 * np.log10(powers[1] / powers[0]) < 1
    assert np.abs(again[-frame_size:]).max() < 2 * np.abs(music[-frame_size:]).max()


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


def join_all(windows, hop, n_frames):
    return np.concatenate([*join_windows(windows, hop, n_frames)], axis=1)


def test_joined_windows_of_one_spectrogram_give_it_back():
    rng = np.random.default_rng(0)
    whole = rng.uniform(-80, 0, (8, 100, 2)).astype(np.float32)
    windows = [whole[:, start : start + 20] for start in range(0, 81, 10)]

    joined = join_all(windows, 10, 100)

    np.testing.assert_allclose(joined, whole, atol=1e-4)


def test_joined_windows_of_unlike_content_keep_their_power():
    windows = np.full((2, 4, 20, 1), -100.0, np.float32)  # dB
    windows[0, 1], windows[1, 2] = -20, -20

    joined = join_all(windows, 10, 30)

    power = 10 ** (joined[:, 14:16, 0] / 10)  # in the middle of where they overlap
    np.testing.assert_allclose(power.sum(axis=0), 0.01, rtol=1e-3)


def test_joined_windows_fade_into_each_other():
    windows = np.stack([np.full((3, 4, 1), level, np.float32) for level in (-40, -30)])

    (joined,) = join_all(windows, 2, 6)[:1, :, 0]

    assert joined[0] == joined[1] == -40 and joined[4] == joined[5] == -30
    assert -40 < joined[2] < joined[3] < -30


def test_the_last_window_is_filled_with_silence():
    generator = SoundGenerator(None, 64, frame_size=256, n_samples=7 * 64)
    noise = np.random.default_rng(0).standard_normal(6 * 64).astype(np.float32)

    *_, last = generator.cut_windows(np.tile(noise, 2)[: 7 * 64 + 65])

    # The second window begins with frame 4; frame 8 is the last that is not silence by half.
    assert last[:, :5].mean() > 0
    np.testing.assert_array_equal(last[:, 6:], np.full((128, 2, 1), -100))  # dB


def test_joined_windows_have_no_seam():
    rng = np.random.default_rng(0)
    n_frames, hop = 64, 32
    windows = rng.normal(-40, 5, (300, 32, n_frames, 1)).astype(np.float32)

    joined = join_all(windows, hop, 299 * hop + n_frames)[..., 0]

    power = (10 ** (joined / 10)).mean(axis=0)
    flux = np.abs(np.diff(joined, axis=1)).mean(axis=0)
    place = np.arange(hop, 299 * hop)
    border = place % hop < 2
    ratio = power[place[border]].mean() / power[place[~border]].mean()
    assert abs(10 * np.log10(ratio)) < 0.15  # dB, by chance
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


def test_a_long_log_spectrogram_is_sketched_by_every_nth_frame(monkeypatch):
    monkeypatch.setattr(soundgenerator, "MAX_SKETCHED", 10)
    sketch = Sketch(25)
    frames = np.arange(30, dtype=np.float32)[np.newaxis, :, np.newaxis]

    for start, stop in ((0, 4), (4, 11), (11, 30)):
        sketch.add(frames[:, start:stop])

    np.testing.assert_array_equal(sketch.get()[0, :, 0], np.arange(0, 25, 3))
    assert sketch.n_seen == 25


@pytest.mark.parametrize("n_channels", [1, 2])
def test_a_continuation_has_no_seam(n_channels):
    music = np.stack([make_music(3.0), 0.5 * make_music(3.0, seed=2)])[:n_channels]
    music = music[0] if n_channels == 1 else music
    generator = SoundGenerator(None, 64, frame_size=256, n_samples=6615)
    recording = music[..., :40000]
    end = generator.find_end(recording)
    start = end - (generator.n_frames - generator.window_hop) * 64
    windows = generator.cut_windows(music[..., start:])  # what really follows

    new, log_spectrogram = generator.continue_sound(recording, windows, 15000)

    assert new.shape == (*music.shape[:-1], 15000)
    whole = np.concatenate([recording[..., :end], new], axis=-1)
    extract = preprocess.LogSpectrogramExtractor(256, 64).extract
    amplitudes = [librosa.db_to_amplitude(extract(sound)) for sound in (whole, music)]
    joint, last = end // 64, (end + 14000) // 64
    squares = np.square(amplitudes[0][:, :last] - amplitudes[1][:, :last])
    squares = squares.reshape(128, last, -1).sum(axis=(0, 2))
    powers = np.square(amplitudes[1][:, :last]).reshape(128, last, -1).sum(axis=(0, 2))
    at_joint = squares[joint - 3 : joint + 4].sum() / powers[joint - 3 : joint + 4].sum()
    after = squares[joint + 4 :].sum() / powers[joint + 4 :].sum()
    assert squares[: joint - 2].max() < 1e-6  # it is the recording
    assert after < 0.02 and at_joint < 0.02
    found = (
        log_spectrogram[:, 2:200] - extract(music[..., end:]).reshape(128, -1, n_channels)[:, 2:200]
    )
    assert np.median(np.abs(found)) < 1  # dB


def test_a_song_through_a_quiet_autoencoder_keeps_its_level():
    class Quiet(Identity):
        def reconstruct(self, images):
            return np.maximum(images - 0.1, 0), None

    music = make_music(4.0) * np.linspace(1, 0.1, 88200, dtype=np.float32)
    texture = Texture(np.full(128, 0.5, np.float32), 3.0)
    options = {"frame_size": 256, "n_samples": 6615, "texture": texture}

    sound, *_ = SoundGenerator(Quiet((128, 104, 1)), 64, **options).reconstruct(music)

    powers = [np.square(each).reshape(4, -1).sum(axis=1) for each in (music, sound)]
    np.testing.assert_allclose(10 * np.log10(powers[1] / powers[0]), 0, atol=0.3)  # dB


def test_levels_are_matched_without_steps_and_silence_stays_silent():
    recorded = np.sin(np.arange(8000, dtype=np.float32)) * np.repeat([1, 0.5, 0, 0], 2000)
    sound = 0.3 * np.roll(recorded, 3) + np.float32(1e-7)
    before = sound.copy()

    soundgenerator.match_level(sound, recorded, 1000)

    powers = [np.square(each).reshape(4, -1).mean(axis=1) for each in (recorded, sound)]
    np.testing.assert_allclose(10 * np.log10(powers[1][:2] / powers[0][:2]), 0, atol=0.6)
    assert powers[1][3] < 1e-12
    gains = (sound / before)[:3500]
    assert np.abs(np.diff(gains)).max() < 0.01
