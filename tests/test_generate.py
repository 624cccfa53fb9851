import numpy as np
import pytest
import soundfile

import generate
from generation.ways import Item, make_wav_names
from support import dataset

KEYS = [f"jazz/song.{i:05d}.wav.000.npy" for i in range(30)]
MIN_MAX = {key: {"min": -80.0, "max": float(i)} for i, key in enumerate(KEYS)}


def select(**keywords):
    return generate.select_spectrograms([*range(30)], KEYS, MIN_MAX, **keywords)


def test_select_takes_each_at_most_once():
    spectrograms, min_max, keys = select(num_spectrograms=30)

    assert sorted(keys) == KEYS
    assert [KEYS[i] for i in spectrograms] == keys
    assert [entry["max"] for entry in min_max] == spectrograms


def test_select_follows_the_seed():
    assert select(seed=1)[2] == select(seed=1)[2] != select(seed=2)[2]


def test_select_gives_all_when_more_are_asked_for():
    assert len(select(num_spectrograms=99)[2]) == 30


def test_select_by_name_keeps_the_order():
    assert select(files=[KEYS[7], KEYS[2][:-4]])[2] == [KEYS[7], KEYS[2]]


def test_select_lists_the_near_names_of_an_unknown_one():
    with pytest.raises(ValueError, match=r"no spectrogram is called .*00003\.wav\.000"):
        select(files=["jazz/song.0003.wav.000"])


def test_select_needs_min_max_values():
    with pytest.raises(ValueError, match="has no min-max values: run preprocess"):
        generate.select_spectrograms([0], ["new.npy"], MIN_MAX)


def test_wav_names_are_distinct_and_fit_a_file_system():
    keys = ["a/b.wav.000.npy", "a__b.wav.000.npy", "ü" * 400 + "1.npy", "ü" * 400 + "2.npy"]

    names = make_wav_names(keys)

    assert names[0] == "a__b.wav.000.wav"
    assert len(set(names)) == 4
    assert max(len(name.encode()) for name in names) < 255


def test_sounds_of_an_item_are_scaled_together_only_when_one_clips(tmp_path):
    settings = dataset.Settings(1, 22050, 256, 64, 0.3, True, "all", 80.0)
    quiet, loud = np.array([0.5, -0.25]), np.array([2.0, -1.0])

    def write(name, generated):
        sounds = {"original": quiet, "generated": generated}
        generate.write_item(tmp_path, Item(name, name, sounds, {}, {}), settings)
        return [soundfile.read(tmp_path / kind / f"{name}.wav")[0] for kind in sounds]

    original, generated = write("loud", loud)
    assert np.abs(generated).max() == pytest.approx(generate.HEADROOM, abs=1e-4)  # 16 bits
    np.testing.assert_allclose(4 * original, generated, atol=1e-3)
    np.testing.assert_allclose(write("quiet", quiet)[0], quiet, atol=1e-4)


def test_saved_signals_read_back(tmp_path):
    rng = np.random.default_rng(0)
    mono, stereo = rng.uniform(-1, 1, 500), rng.uniform(-1, 1, (2, 500))

    generate.save_signals([mono, stereo], tmp_path, ["m.wav", "s.wav"], 8000)

    again, sample_rate = soundfile.read(tmp_path / "s.wav")
    assert sample_rate == 8000
    np.testing.assert_allclose(again.T, stereo, atol=2**-15)  # 16 bits
    np.testing.assert_allclose(soundfile.read(tmp_path / "m.wav")[0], mono, atol=2**-15)
