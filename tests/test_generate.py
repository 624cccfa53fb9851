import numpy as np
import pytest
import soundfile

import generate
from generation.modes import Item, make_file_names
from support.errors import UserError

KEYS = [f"jazz/song.{i:05d}.wav.000.npy" for i in range(30)]
MIN_MAX = {key: {"min": -80.0, "max": float(i)} for i, key in enumerate(KEYS)}


def select(**keywords):
    return generate.select_spectrograms([*range(30)], KEYS, MIN_MAX, **keywords)


def test_load_data_gives_spectrograms_with_a_channel_and_their_keys(spectrograms):
    images, keys = generate.load_data(spectrograms)

    assert len(images) == len(keys) == 6 and keys[0] == "a/x.wav.000.npy"
    assert images[0].shape == (16, 12, 1)
    np.testing.assert_array_equal(images[0][..., 0], np.load(spectrograms / keys[0]))


def test_select_takes_each_at_most_once():
    spectrograms, min_max, keys = select(num_spectrograms=30)

    assert sorted(keys) == KEYS
    assert [KEYS[i] for i in spectrograms] == keys
    assert [entry["max"] for entry in min_max] == spectrograms


def test_select_follows_the_seed():
    assert select(seed=1)[2] == select(seed=1)[2] != select(seed=2)[2]


def test_select_gives_all_if_more_are_asked_for():
    assert len(select(num_spectrograms=99)[2]) == 30


def test_select_by_name_keeps_the_order():
    assert select(files=[KEYS[7], KEYS[2][:-4]])[2] == [KEYS[7], KEYS[2]]


def test_select_lists_names_similar_to_an_unknown_one():
    with pytest.raises(UserError, match=r"no spectrogram is called .*00003\.wav\.000"):
        select(files=["jazz/song.0003.wav.000"])


def test_select_needs_min_max_values():
    with pytest.raises(UserError, match="has no min-max values: run preprocess"):
        generate.select_spectrograms([0], ["new.npy"], MIN_MAX)


def test_file_names_are_distinct_and_fit_a_file_system():
    keys = ["a/b.wav.000.npy", "a__b.wav.000.npy", "ü" * 400 + "1.npy", "ü" * 400 + "2.npy"]

    names = make_file_names(keys)

    assert names[0] == "a__b.wav.000"
    assert len(set(names)) == 4
    assert max(len(name.encode()) for name in names) < 250


def test_sounds_of_an_item_are_scaled_together_only_if_one_clips(tmp_path):
    quiet, loud = np.array([0.5, -0.25]), np.array([2.0, -1.0])
    save_dirs = {kind: tmp_path / kind for kind in ("original", "generated")}

    def save(name, generated):
        item = Item(name, name, {"original": quiet, "generated": generated}, {}, {})
        item, paths = generate.save_item(item, save_dirs, 22050)
        return item.figures, *[soundfile.read(path)[0] for path in paths.values()]

    figures, original, generated = save("loud", loud)
    assert np.abs(generated).max() == pytest.approx(generate.HEADROOM, abs=1e-4)  # 16 bits
    np.testing.assert_allclose(4 * original, generated, atol=1e-3)
    assert figures == {"scaled to avoid clipping by": pytest.approx(0.495)}
    figures, original, _ = save("quiet", quiet)
    np.testing.assert_allclose(original, quiet, atol=1e-4)
    assert figures == {}


def test_saved_signals_read_back(tmp_path):
    rng = np.random.default_rng(0)
    mono, stereo = rng.uniform(-1, 1, 500), rng.uniform(-1, 1, (2, 500))

    paths = generate.save_signals([mono, stereo], tmp_path, ["m", "s"], 8000)

    assert paths == [tmp_path / "m.wav", tmp_path / "s.wav"]
    signal, sample_rate = soundfile.read(paths[1])
    assert sample_rate == 8000
    np.testing.assert_allclose(signal.T, stereo, atol=2**-15)  # 16 bits
    np.testing.assert_allclose(soundfile.read(paths[0])[0], mono, atol=2**-15)
