import json

import numpy as np
import pytest
from scipy.ndimage import uniform_filter1d

from helpers import SAMPLE_RATE, make_music, make_tone
from preprocess import LogSpectrogramExtractor
from support.errors import UserError
from support.griffin_lim import GriffinLim
from support.spectrograms import to_amplitude
from support.texture import (
    MIN_CELLS,
    NOISE_SAMPLES,
    SHAPE,
    Texture,
    classify,
    make_scatter,
    measure_texture,
)

EXTRACTOR = LogSpectrogramExtractor(256, 64)
FULL = Texture(np.ones(SHAPE, np.float32), 0.0)


def make_noise(n_frames=200, seed=0):
    """(the log spectrogram of noise, its mean), float32 (128, n_frames, 1), dB."""
    scatter = make_scatter(EXTRACTOR, n_frames, seed)[..., np.newaxis]
    return scatter - 30, np.full_like(scatter, -30.0)


def make_chord(seed=0):
    """Three notes of eight partials, louder and softer in turn, float32 (3 s,)."""
    rng = np.random.default_rng(seed)
    time = np.arange(3 * SAMPLE_RATE) / SAMPLE_RATE
    notes = [
        make_tone(f * k, 3.0, level=0.5**k) for f in rng.uniform(200, 900, 3) for k in range(1, 9)
    ]
    return sum(notes) * (1 + 0.5 * np.sin(2 * np.pi * 2 * time)).astype(np.float32)


def make_hiss(level=0.1, seed=0):
    """White noise, float32 (3 s,)."""
    return level * np.random.default_rng(seed).standard_normal(3 * SAMPLE_RATE, np.float32)


def blur(signal):
    """(its log spectrogram, the means of nine frames each of it), float32 (128, any, 1), dB."""
    log_spectrogram = EXTRACTOR.extract(signal)
    blurred = uniform_filter1d(log_spectrogram, 9, axis=1)
    return log_spectrogram[..., np.newaxis], blurred[..., np.newaxis]


@pytest.fixture(scope="module")
def texture():
    """That of chords with noise under them, and of noise alone."""
    sounds = [make_chord(seed) + make_hiss(0.002, seed) for seed in range(4)]
    pairs = [blur(sound) for sound in [*sounds, make_hiss(seed=4)]]
    return measure_texture(*zip(*pairs, strict=True), EXTRACTOR)


def test_scatter_is_that_of_noise():
    scatter = make_scatter(EXTRACTOR, 500, seed=0)

    assert scatter.shape == (128, 500) and abs(scatter[2:].mean()) < 0.1
    # The standard deviation of 10 log10 of an exponential variable: 10 / ln 10 * pi / sqrt 6.
    assert scatter[2:].std() == pytest.approx(5.57, rel=0.02)


def test_scatter_goes_on_from_part_to_part():
    start = NOISE_SAMPLES // 64 - 100  # frames, before a block of noise ends

    whole = make_scatter(EXTRACTOR, 200, 0, start)
    parts = [make_scatter(EXTRACTOR, 50, 0, start + first) for first in range(0, 200, 50)]

    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-3)
    assert np.abs(np.corrcoef(parts[0].ravel(), parts[1].ravel())[0, 1]) < 0.1


def test_what_is_missing_from_noise_is_all_of_its_scatter_and_nothing_from_a_tone():
    noise, mean = make_noise()
    tone = np.full_like(noise, -30.0)

    of_noise = measure_texture([noise], [mean], EXTRACTOR)
    of_tone = measure_texture([tone], [tone], EXTRACTOR)

    np.testing.assert_allclose(of_noise.amounts, 1, atol=0.05)
    assert not of_tone.amounts.any()
    assert abs(of_tone.level_db) < 1e-6


def test_attacks_are_not_taken_for_scatter():
    attacks = np.full((128, 200, 1), -60.0, np.float32)
    attacks[:, ::12] = -30
    soft = uniform_filter1d(attacks, 5, axis=1)

    texture = measure_texture([attacks], [soft], EXTRACTOR)

    assert not texture.amounts.any()


def test_classes_are_by_depth_and_by_roughness_over_bins():
    flat = np.full((128, 3, 1), -30.0, np.float32)
    teeth = flat - 26 * (np.arange(128) % 4 > 0)[:, np.newaxis, np.newaxis]  # deviation: 11 dB

    depths = [classify(flat, peak) for peak in (-30.0, -15.0, -5.0, 10.0, 20.0)]

    assert [SHAPE[1] * row for row in range(5)] == [np.unique(each) for each in depths]
    inner = classify(teeth, -30.0)[8:-8]  # of whole windows
    assert (inner[::4] == 5).all() and (inner[1::4] == 2 * SHAPE[1] + 5).all()


def test_tones_lack_less_than_noise(texture):
    _, chord = blur(make_chord(9))
    _, hiss = blur(make_hiss(seed=9))
    loud = chord[20:60] > chord.max() - 20  # dB

    of_chord, of_hiss = (
        texture.amounts.ravel()[classify(each, each.max())] for each in (chord, hiss)
    )

    assert of_hiss.mean() > 0.8 and of_chord[20:60][loud].mean() < 0.3


def test_a_class_of_few_cells_lacks_what_all_cells_together_lack():
    noise, mean = make_noise()
    loud = mean.copy()
    loud[60, 10] += 40  # dB

    texture = measure_texture([noise], [loud], EXTRACTOR)

    assert (np.bincount(classify(loud, loud.max()).ravel()) < MIN_CELLS).any()
    np.testing.assert_allclose(texture.amounts, 1, atol=0.05)


def test_a_tone_through_a_blur_stands_over_the_noise(texture):
    _, blurred = blur(make_tone(440.0, 3.0, level=0.4) + make_hiss(0.0005))

    textured = texture.apply(blurred, EXTRACTOR)

    sound = GriffinLim(256, 64).invert(to_amplitude(textured), 3 * SAMPLE_RATE)
    sound = sound[SAMPLE_RATE // 2 : -SAMPLE_RATE // 2]
    powers = np.square(np.abs(np.fft.rfft(sound * np.hanning(len(sound)))))
    is_tone = np.abs(np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE) - 440) < 4  # Hz
    # It is 12 dB; with one amount per bin -7, without texture 46.
    assert 10 * np.log10(powers[is_tone].sum() / powers[~is_tone].sum()) > 8


def test_noise_through_a_blur_is_noise_again(texture):
    original, blurred = blur(make_hiss(seed=8))

    again = texture.apply(blurred, EXTRACTOR)

    steps = [np.square(np.diff(log[2:], axis=1)).mean() ** 0.5 for log in (original, again)]
    assert steps[1] == pytest.approx(steps[0], rel=0.15)


def test_parts_of_a_sound_fit_together(texture):
    whole = np.concatenate([blur(0.01**n * make_chord(n))[1][:, :200] for n in range(2)], axis=1)

    once = texture.apply(whole, EXTRACTOR, peak=whole.max())
    parts = [
        texture.apply(whole[:, first : first + 200], EXTRACTOR, first_frame=first, peak=whole.max())
        for first in (0, 200)
    ]

    np.testing.assert_allclose(np.concatenate(parts, axis=1), once, atol=1e-4)  # dB
    np.testing.assert_allclose(texture.apply(whole, EXTRACTOR), once, atol=1e-4)


def test_a_reconstruction_gets_back_its_level_and_its_steps():
    noise, mean = make_noise()
    texture = measure_texture([noise], [mean - 4], EXTRACTOR)

    again = texture.apply(mean - 4, EXTRACTOR, seed=7)

    powers = [10 * np.log10((10 ** (log / 10)).mean()) for log in (noise, again)]
    steps = [np.square(np.diff(log, axis=1)).mean() for log in (noise, again)]
    assert powers[1] == pytest.approx(powers[0], abs=0.3)
    assert steps[1] == pytest.approx(steps[0], rel=0.1)


def test_silence_gets_no_texture():
    _, mean = make_noise()
    mean[:, 50:100] = -100

    again = FULL._replace(level_db=3.0).apply(mean, EXTRACTOR)

    assert (again[:, 50:100] == -100).all() and (again[:, :50] > -90).all()


def test_what_is_near_the_floor_gets_little_texture():
    _, mean = make_noise()
    mean[:, 50:100] -= 65  # dB; 15 above the floor

    again = FULL._replace(level_db=4.0).apply(mean, EXTRACTOR)

    changes = [(again - mean)[2:, part] for part in (slice(0, 50), slice(50, 100))]
    assert changes[1].std() == pytest.approx(changes[0].std() / 2, rel=0.1)
    assert changes[1].mean() == pytest.approx(2, abs=0.3)


def test_channels_share_their_texture():
    mean = np.full((128, 50, 2), -30.0, np.float32)

    again = FULL.apply(mean, EXTRACTOR)

    np.testing.assert_array_equal(again[..., 0], again[..., 1])


def test_texture_follows_from_the_seed():
    _, mean = make_noise()

    first, again, other = (FULL.apply(mean, EXTRACTOR, seed) for seed in (0, 0, 1))

    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1


def test_silence_alone_lacks_nothing():
    silence = np.full((128, 20, 1), -100.0, np.float32)

    texture = measure_texture([silence], [silence], EXTRACTOR)

    assert not texture.amounts.any() and texture.level_db == 0


def test_texture_reads_back(tmp_path):
    texture = Texture(np.linspace(0, 1, 35, dtype=np.float32).reshape(SHAPE), 2.5)

    texture.save(tmp_path)

    again = Texture.load(tmp_path)
    np.testing.assert_array_equal(again.amounts, texture.amounts)
    assert again.level_db == 2.5


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"amounts": [1], "level_db": 0}', '{"amounts": "x", "level_db": 0}']
)
def test_a_damaged_texture_is_named(tmp_path, text):
    (tmp_path / "texture.json").write_text(text)

    with pytest.raises(UserError, match="texture.json .*"):
        Texture.load(tmp_path)


@pytest.mark.parametrize(
    "change", [{"level_db": float("nan")}, {"amounts": np.full(SHAPE, -1.0).tolist()}]
)
def test_a_texture_out_of_range_is_refused(tmp_path, change):
    values = {"amounts": FULL.amounts.tolist(), "level_db": 0.0, **change}
    (tmp_path / "texture.json").write_text(json.dumps(values))

    with pytest.raises(UserError, match="texture.json is damaged"):
        Texture.load(tmp_path)


def test_a_texture_of_an_earlier_version_is_refused(tmp_path):
    (tmp_path / "texture.json").write_text(json.dumps({"amounts": [0.9] * 128, "level_db": 1.0}))

    with pytest.raises(UserError, match=r"texture.json .* earlier version .*: run train.py again"):
        Texture.load(tmp_path)


def test_music_keeps_its_level_through_a_blur():
    original, blurred = blur(make_music(3.0))
    texture = measure_texture([original], [blurred], EXTRACTOR)

    again = texture.apply(blurred, EXTRACTOR, seed=3)

    powers = [10 * np.log10((10 ** (log / 10)).sum()) for log in (original, again)]
    assert powers[1] == pytest.approx(powers[0], abs=0.5)
