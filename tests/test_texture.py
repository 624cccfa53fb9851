import json

import numpy as np
import pytest

from helpers import make_music
from preprocess import LogSpectrogramExtractor
from support.errors import UserError
from support.texture import NOISE_SAMPLES, Texture, make_scatter, measure_texture

EXTRACTOR = LogSpectrogramExtractor(256, 64)


def make_noise(n_frames=200, seed=0):
    """(the log spectrogram of noise, its mean), float32 (128, n_frames, 1), dB."""
    scatter = make_scatter(EXTRACTOR, n_frames, seed)[..., np.newaxis]
    return scatter - 30, np.full_like(scatter, -30.0)


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

    assert of_noise.amounts[2:].mean() == pytest.approx(1, abs=0.05)
    assert not of_tone.amounts.any()
    assert abs(of_tone.level_db) < 1e-6


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

    again = Texture(np.ones(128, np.float32), 3.0).apply(mean, EXTRACTOR)

    assert (again[:, 50:100] == -100).all() and (again[:, :50] > -90).all()


def test_what_is_near_the_floor_gets_little_texture():
    _, mean = make_noise()
    mean[:, 50:100] -= 65  # dB; 15 above the floor

    again = Texture(np.ones(128, np.float32), 4.0).apply(mean, EXTRACTOR)

    changes = [(again - mean)[2:, part] for part in (slice(0, 50), slice(50, 100))]
    assert changes[1].std() == pytest.approx(changes[0].std() / 2, rel=0.1)
    assert changes[1].mean() == pytest.approx(2, abs=0.3)


def test_channels_share_their_texture():
    mean = np.full((128, 50, 2), -30.0, np.float32)

    again = Texture(np.ones(128, np.float32), 0.0).apply(mean, EXTRACTOR)

    np.testing.assert_array_equal(again[..., 0], again[..., 1])


def test_texture_follows_from_the_seed():
    _, mean = make_noise()
    texture = Texture(np.ones(128, np.float32), 0.0)

    first, again, other = (texture.apply(mean, EXTRACTOR, seed) for seed in (0, 0, 1))

    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1


def test_silence_alone_lacks_nothing():
    silence = np.full((128, 20, 1), -100.0, np.float32)

    texture = measure_texture([silence], [silence], EXTRACTOR)

    assert not texture.amounts.any() and texture.level_db == 0


def test_texture_reads_back(tmp_path):
    texture = Texture(np.linspace(0, 1, 128, dtype=np.float32), 2.5)

    texture.save(tmp_path)

    again = Texture.load(tmp_path, 128)
    np.testing.assert_array_equal(again.amounts, texture.amounts)
    assert again.level_db == 2.5


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"amounts": [1], "level_db": 0}', '{"amounts": "x", "level_db": 0}']
)
def test_a_damaged_texture_is_named(tmp_path, text):
    (tmp_path / "texture.json").write_text(text)

    with pytest.raises(UserError, match="texture.json .*"):
        Texture.load(tmp_path, 128)


@pytest.mark.parametrize("change", [{"level_db": float("nan")}, {"amounts": [-1.0] * 128}])
def test_a_texture_out_of_range_is_refused(tmp_path, change):
    values = {"amounts": [1.0] * 128, "level_db": 0.0, **change}
    (tmp_path / "texture.json").write_text(json.dumps(values))

    with pytest.raises(UserError, match="texture.json is damaged"):
        Texture.load(tmp_path, 128)


def test_music_keeps_its_level_through_a_blur():
    music = make_music(3.0)
    original = EXTRACTOR.extract(music)[..., np.newaxis]
    kernel = np.ones(9) / 9
    blurred = np.apply_along_axis(lambda row: np.convolve(row, kernel, "same"), 1, original)
    blurred = blurred.astype(np.float32)
    texture = measure_texture([original], [blurred], EXTRACTOR)

    again = texture.apply(blurred, EXTRACTOR, seed=3)

    powers = [10 * np.log10((10 ** (log / 10)).sum()) for log in (original, again)]
    assert powers[1] == pytest.approx(powers[0], abs=0.5)
