import librosa
import numpy as np
import pytest

import autoencoder
import preprocess
from autoencoder import Autoencoder, keras
from generation.evaluation import measure_spectral_convergence
from helpers import make_music, make_tone, measure_pitch
from soundgenerator import SoundGenerator
from support.spectrograms import to_amplitude, to_image

SAME_DB = 1e-3  # between log spectrograms: float32 at 80 dB
SAME_LATENT = 1e-4  # between latents computed in pieces of other lengths: float32
SAME_IMAGE = 1e-4  # of the range, between images that splines resized in pieces of other lengths


class Identity:
    """An autoencoder that loses nothing: a latent is the columns of its step."""

    frames_per_step = 4
    reach = 8
    plan_stretches = Autoencoder.plan_stretches

    def __init__(self, input_shape):
        self.input_shape = input_shape

    @property
    def latent_space_dim(self):
        return self.frames_per_step * self.input_shape[0] * self.input_shape[2]

    def encode(self, images):
        n, height, width, channels = images.shape
        missing = -width % self.frames_per_step
        images = np.pad(images, [(0, 0), (0, 0), (0, missing), (0, 0)])
        size = self.frames_per_step * height * channels
        return images.swapaxes(1, 2).reshape(n, -1, size)

    def decode(self, latents):
        height, _, channels = self.input_shape
        return latents.reshape(len(latents), -1, height, channels).swapaxes(1, 2)

    def reconstruct(self, images):
        assert images.shape[1:3] == tuple(self.input_shape[:2])
        latents = self.encode(images)
        return self.decode(latents)[:, :, : images.shape[2]], latents


def analyse(signal, frame_size=1024, hop_length=256):
    """The normalised spectrogram of a signal and its min-max values."""
    log_spectrogram = preprocess.LogSpectrogramExtractor(frame_size, hop_length).extract(signal)
    return to_image(log_spectrogram, preprocess.MinMaxNormaliser(0, 1))


def resynthesise(signal, frame_size=1024, hop_length=256, target_shape=None):
    spectrogram, min_max = analyse(signal, frame_size, hop_length)
    generator = SoundGenerator(
        Identity((*(target_shape or spectrogram.shape[:2]), signal.ndim)),
        hop_length,
        frame_size=frame_size,
        n_samples=signal.shape[-1],
    )
    (again,), _ = generator.generate([spectrogram], [min_max])
    return again


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

    log_spectrogram = generator.restore_log_spectrogram(spectrogram, min_max)
    assert again.shape == music.shape
    assert measure_spectral_convergence(to_amplitude(log_spectrogram), again, 1024, 256) < -20
    expected = preprocess.LogSpectrogramExtractor(1024, 256).extract(music)
    expected[expected == expected.min()] = -100  # what is at the floor is silent
    assert log_spectrogram.shape == (512, 259, 1)
    np.testing.assert_allclose(log_spectrogram[..., 0], expected, atol=1e-3)  # float32 at 80 dB


def test_silence_and_a_silent_part_of_a_piece_stay_silent():
    assert not resynthesise(np.zeros(30000, np.float32)).any()
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


@pytest.mark.parametrize(
    "frame_size, hop_length, n_left", [(2048, 1024, 1023), (1024, 512, 511), (512, 256, 44)]
)
def test_a_piece_keeps_its_length_and_does_not_end_with_a_click(frame_size, hop_length, n_left):
    music = make_music(3.0)[: 60 * 1024 + n_left]

    again = resynthesise(music, frame_size, hop_length)

    assert len(again) == len(music)
    powers = [np.square(signal[-frame_size:]).mean() for signal in (music, again)]
    assert 10 * np.log10(powers[1] / powers[0]) < 1
    assert np.abs(again[-frame_size:]).max() < 2 * np.abs(music[-frame_size:]).max()


def test_stereo_channels_come_back_apart():
    stereo = np.stack([make_tone(440, 1.0), make_tone(1000, 1.0)])

    again = resynthesise(stereo)

    assert again.shape == stereo.shape
    assert abs(measure_pitch(again[0]) - 440) < 1
    assert abs(measure_pitch(again[1]) - 1000) < 1


def make_recording(duration, n_channels=1):
    """Music, float32 (n_samples,) or (2, n_samples)."""
    music = make_music(duration)
    return music if n_channels == 1 else np.stack([music, 0.5 * make_music(duration, seed=2)])


def make_random(input_shape):
    """A small Autoencoder with random weights, whose images differ from grey."""
    keras.utils.set_random_seed(0)
    network = Autoencoder(input_shape, (8, 8), (3, 3), (2, 2), 6, bins_as_channels=True)
    latent, last = network.encoder.get_layer("latent"), network.decoder.get_layer("deconv_0")
    latent.kernel.assign(20 * latent.kernel)
    last.bias.assign(0.5 + last.bias)
    return network


def make_generator(network, **options):
    """A SoundGenerator of pieces of 104 frames, 128 bins each."""
    return SoundGenerator(network, 64, frame_size=256, n_samples=6615, **options)


def extract(signal):
    """The log spectrogram that make_generator()'s pieces are of, (128, n_frames, n_channels)."""
    log_spectrogram = preprocess.LogSpectrogramExtractor(256, 64, top_db=None).extract(signal)
    return log_spectrogram.reshape(*log_spectrogram.shape[:2], -1)


def decode_all(generator, latents, min_max):
    """The log spectrogram of latents, what is at its floor or below at its floor."""
    return np.maximum(np.concatenate([*generator.decode(latents, min_max)], axis=1), min_max["min"])


@pytest.mark.parametrize("duration, n_channels", [(0.1, 1), (0.3, 2), (2.0, 1), (2.0, 2)])
def test_a_recording_of_any_length_is_decoded_as_it_was_encoded(duration, n_channels):
    recording = make_recording(duration, n_channels)
    generator = make_generator(Identity((128, 104, n_channels)))

    latents, min_max = generator.encode(recording)
    decoded = decode_all(generator, latents, min_max)

    expected = extract(recording)
    n_frames = expected.shape[1]
    assert min_max == {"min": pytest.approx(expected.max() - 80), "max": expected.max()}
    assert len(latents) == -(-n_frames // 4) == generator.count_steps(recording.shape[-1])
    np.testing.assert_allclose(
        decoded[:, :n_frames], np.maximum(expected, min_max["min"]), atol=SAME_DB
    )
    assert (decoded[:, n_frames:] == min_max["min"]).all()  # silence fills the last step


@pytest.mark.parametrize("n_samples", [600, 3000, 6615, 40000])
def test_a_song_of_any_length_goes_through_the_autoencoder(n_samples):
    music = make_music(2.0)[:n_samples]

    sound = make_generator(Identity((128, 104, 1))).reconstruct(music)

    assert sound.shape == music.shape
    amplitude = to_amplitude(extract(music))
    assert measure_spectral_convergence(amplitude, sound, 256, 64) < -15


@pytest.mark.parametrize(
    "input_shape",
    [
        (128, 104, 1),
        (64, 26, 1),  # smaller than the spectrogram: 4 frames to a column
        (64, 39, 2),  # 8 frames to 3 columns
        (64, 103, 1),  # whole frames only after 104 of them
    ],
)
def test_stretches_give_what_one_pass_does(monkeypatch, input_shape):
    recording = make_recording(3.0, input_shape[2])
    generator = make_generator(make_random(input_shape))

    found = []
    for stretch in (7, 100_000):
        monkeypatch.setattr(autoencoder, "STRETCH_STEPS", stretch)
        latents, min_max = generator.encode(recording)
        found.append((latents, decode_all(generator, latents, min_max), min_max))

    (latents, decoded, min_max), (whole_latents, whole_decoded, whole_min_max) = found
    assert min_max == whole_min_max and whole_latents.std() > 0.01
    np.testing.assert_allclose(latents, whole_latents, atol=SAME_LATENT)
    np.testing.assert_allclose(decoded, whole_decoded, atol=SAME_IMAGE * 80)
    n_frames = 1 + recording.shape[-1] // 64
    assert decoded.shape[1] >= n_frames and whole_decoded.std() > 5


@pytest.mark.parametrize("input_shape", [(128, 104, 1), (64, 26, 1)])
def test_latents_of_a_cut_recording_are_those_of_the_whole_shifted(input_shape):
    generator = make_generator(make_random(input_shape))
    step = 4 * 104 // input_shape[1]  # frames
    n_cut = 20  # steps
    recording = make_music(3.0)
    recording[40000:42000] *= 5  # the peak of both

    whole, min_max = generator.encode(recording)
    cut, cut_min_max = generator.encode(recording[n_cut * step * 64 :])

    assert cut_min_max == min_max and len(cut) == len(whole) - n_cut
    edge = 5  # steps that the beginning reaches
    difference = np.abs(whole[n_cut:] - cut)[edge:]
    assert (difference.max(axis=0) < 1e-3 * whole.std(axis=0)).all()


def test_a_resized_recording_keeps_its_time():
    bursts = make_tone(1000, 4.0) * (np.arange(88200) // 7000 % 2)
    generator = make_generator(Identity((64, 26, 1)))  # 4 frames to a column

    latents, min_max = generator.encode(bursts.astype(np.float32))
    decoded = decode_all(generator, latents, min_max)[:, : 1 + len(bursts) // 64]

    loud = [each.max(axis=(0, 2)) > each.max() - 30 for each in (decoded, extract(bursts))]
    changes = np.flatnonzero(np.diff(loud[1]))
    assert len(changes) == 12
    for place in changes:  # within a column of 4 frames, which a spline smooths
        assert (loud[0] == loud[1])[place + 5 : place + 90].all()


class Ramp:
    """A detail that tells where it was drawn."""

    reach = 8

    def add(self, image, seed, first_frame):
        frames = first_frame + np.arange(image.shape[1], dtype=np.float32)
        return image + frames[:, np.newaxis] / 800


def test_the_detail_of_stretches_is_that_of_one_pass(monkeypatch):
    recording = make_music(1.0)
    generator = make_generator(Identity((128, 104, 1)), detail=Ramp())
    latents, min_max = generator.encode(recording)
    latents = np.concatenate([latents[:1], latents])  # 4 known frames

    monkeypatch.setattr(autoencoder, "STRETCH_STEPS", 10)
    parts = [*generator._make_amplitudes(latents, min_max, n_past=1)]

    detailed = librosa.amplitude_to_db(np.concatenate(parts, axis=2)[0, :-1], top_db=None)
    log_spectrogram = extract(recording)[..., 0]
    n_frames = log_spectrogram.shape[1]
    is_heard = log_spectrogram > min_max["max"] - 60
    added = (detailed[:, :n_frames] - log_spectrogram)[is_heard]
    np.testing.assert_allclose(added, (4 + np.nonzero(is_heard)[1]) / 10, atol=2 * SAME_DB)
    assert len(parts) > 5


def fill_as_it_was(music, begin, end, input_shape=(128, 104)):
    """(a recording whose gap is filled with the latents of what was there, which were known)."""
    generator = make_generator(Identity((*input_shape, len(np.atleast_2d(music)))))
    signal, n_samples = music.copy(), music.shape[-1]
    signal[..., begin:end] = 0
    steps, frames = generator._steps_and_frames
    first, last = max(0, begin - 128), min(n_samples, end + 128)
    _, _, n_past, peak = generator._encode_around(signal, first, last)
    start = first - n_past * frames * 64 // steps
    masks = []

    def fill(latents, known):
        stop = start + len(latents) * frames * 64 // steps - 1
        true, _ = generator.encode(music, start, stop, peak)
        masks.append(known)
        return true

    return generator.fill(signal, begin, end, fill), masks[0]


@pytest.mark.parametrize(
    "begin, end, n_channels",
    [(40000, 55000, 1), (0, 20000, 2), (30011, 40022, 1), (30011, 40022, 2)],
)
def test_a_gap_is_filled_without_a_seam(begin, end, n_channels):
    music = make_recording(3.0, n_channels)[..., :55000]

    whole, known = fill_as_it_was(music, begin, end)

    assert whole.shape == music.shape and not known.all() and known.any()
    is_new = (np.arange(55000) >= begin - 128) & (np.arange(55000) < end + 128)
    np.testing.assert_array_equal(whole[..., ~is_new], music[..., ~is_new])
    edges = [edge for edge in (begin - 128, end + 127) if 0 <= edge < 55000]  # what is new fades in
    np.testing.assert_array_equal(whole[..., edges], music[..., edges])
    amplitudes = [librosa.db_to_amplitude(extract(sound)) for sound in (whole, music)]
    squares = np.square(amplitudes[0] - amplitudes[1]).sum(axis=(0, 2))
    powers = np.square(amplitudes[1]).sum(axis=(0, 2))
    inner = slice(begin // 64 + 4, end // 64 - 4)
    assert squares[inner].sum() / powers[inner].sum() < 0.02
    for joint in (begin, end):
        if 0 < joint < 55000:
            near = slice(joint // 64 - 4, joint // 64 + 5)
            assert squares[near].sum() / powers[near].sum() < 0.02


@pytest.mark.parametrize("begin, end", [(40000, 55000), (0, 20000), (30011, 40022)])
def test_what_is_known_beside_a_gap_is_the_recordings(begin, end):
    generator, music = make_generator(Identity((128, 104, 1))), make_recording(3.0, 1)[:55000]
    first, last = max(0, begin - 128), min(55000, end + 128)

    latents, known, n_past, peak = generator._encode_around(music, first, last)

    start = first - 256 * n_past
    true, _ = generator.encode(music, start, start + 256 * len(latents) - 1, peak)
    inner = known & (np.arange(len(known)) < len(known) - 1)  # the last one ends in silence
    np.testing.assert_array_equal(latents[inner], true[inner])
    frames = start + 64 * np.flatnonzero(np.repeat(known, 4))
    assert ((frames + 128 <= begin) | (frames - 128 >= end)).all()  # whole ones


def test_the_range_beside_what_is_known_is_the_one_asked_for():
    generator, music = make_generator(Identity((128, 104, 1))), make_recording(3.0, 1)[:55000]
    latents, known, _, peak = generator._encode_around(music, 40000, 55000)

    softer, _, _, asked = generator._encode_around(music, 40000, 55000, peak + 8, True)

    assert asked == peak + 8
    is_heard = latents[known] > 0.2
    np.testing.assert_allclose(softer[known][is_heard], latents[known][is_heard] - 0.1, atol=1e-4)


@pytest.mark.parametrize("n_known", [256, 300, 6615])
def test_a_recording_of_a_frame_or_more_goes_on(n_known):
    music = make_music(3.0)[: n_known + 5000]

    whole, _ = fill_as_it_was(music, n_known, len(music))

    assert len(whole) == n_known + 5000 and np.abs(whole[n_known:]).max() > 0.01
    np.testing.assert_array_equal(whole[: n_known - 128], music[: n_known - 128])


@pytest.mark.parametrize(
    "input_shape, begin, end",
    [((64, 26), 30011, 66150), ((64, 39), 0, 1500), ((64, 103), 20000, 30011)],
)
def test_a_gap_of_resized_sound_is_filled_in_whole_frames(input_shape, begin, end):
    music = make_music(3.0)

    whole, known = fill_as_it_was(music, begin, end, input_shape)

    assert whole.shape == music.shape and np.isfinite(whole).all()
    assert np.abs(whole[begin:end]).max() > 0.01 and known.any()
