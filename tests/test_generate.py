import io
import sys

import numpy as np
import pytest
import soundfile

import generate
import preprocess
from generation.modes import Item, Recordings, Sources, make_file_names
from helpers import make_music, make_settings
from support import dataset, files
from support.command_line import show_progress
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
        item = Item(name, name, {"original": quiet, "generated": generated}, {})
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


@pytest.mark.parametrize(
    "given, modes",
    [
        ({"seed"}, ["num_spectrograms"]),
        ({"files"}, ["num_spectrograms"]),
        ({"sample", "genre"}, ["sample"]),
        ({"sample", "num_spectrograms"}, ["sample", "num_spectrograms"]),
        ({"interpolate", "files"}, ["interpolate", "num_spectrograms"]),
        ({"fill", "num_spectrograms"}, ["fill"]),
    ],
)
def test_modes_are_those_that_the_flags_ask_for(given, modes):
    assert generate.choose_modes(given) == modes


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--toward", "jazz"), "--toward does nothing without --components or"),
        (("--app", "--sample", "3", "--like", "jazz"), "--app does nothing with --like"),
        (("--export", "here", "--sample", "3"), "--export makes no sound: leave out --sample"),
        (
            ("--temperature", "1", "--num_spectrograms", "2"),
            "nothing without --components or --explore",
        ),
        (("--bpm", "90", "--sample", "2"), "--bpm does nothing without --loop"),
        (("--files", "a", "--num_spectrograms", "2"), "not allowed with argument"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit, match="2"):
        generate.main([*flags])

    assert message in capsys.readouterr().err


def test_help_tells_the_defaults_of_flags_that_belong_to_a_mode():
    text = " ".join(generate.get_parser().format_help().split())

    for flag, default in (("TEMPERATURE", 0.9), ("NUM_SPECTROGRAMS", 5)):
        assert f"(default: {default})" in text.split(f" {flag} ")[-1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, is_shown", [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_shown_on_a_terminal_alone(monkeypatch, stream, is_shown):
    monkeypatch.setattr(sys, "stderr", stream)

    assert [*show_progress("abc", 3, "letters")] == ["a", "b", "c"]

    assert ("letters:   0%" in stream.getvalue()) == is_shown


@pytest.fixture
def features(tmp_path, write_audio, make_settings):
    """The folder of features of two short tracks."""
    for seed, name in enumerate(("a.wav", "b.wav")):
        write_audio(name, make_music(0.5, seed))
    preprocess.preprocess_folder(
        tmp_path / "audio", tmp_path / "saved_data", make_settings(), jobs=1
    )
    return tmp_path / "saved_data" / "spectrograms"


def test_features_of_other_settings_than_the_models_are_refused(features, tmp_path):
    make_settings(hop_length=32).save(tmp_path / "model" / "settings.json")

    with pytest.raises(UserError, match="features of other settings than .*: run train"):
        generate.load_spectrograms(Sources(tmp_path / "model", features, None))


def load_recorded(features, key):
    return Recordings(features).load(key, dataset.load_spectrogram(features, key))


def test_recording_is_what_a_feature_was_made_of(features, make_settings):
    signal = load_recorded(features, "b.wav.001.npy")

    whole = preprocess.make_pipeline(make_settings()).loader.load_whole(
        features.parent.parent / "audio" / "b.wav"
    )
    expected = whole[6615:]  # shorter than a piece, which is padded
    assert np.corrcoef(expected, make_music(0.5, 1)[6615:])[0, 1] > 0.999
    np.testing.assert_allclose(signal[: len(expected)], expected, atol=1e-6)  # float32
    assert len(signal) == 6615 and not signal[len(expected) :].any()


def test_audio_that_was_replaced_is_no_recording(features, write_audio):
    write_audio("a.wav", make_music(0.5, seed=2))

    assert load_recorded(features, "a.wav.000.npy") is None
    assert load_recorded(features, "b.wav.000.npy") is not None


def test_source_of_strangers_gives_no_audio_that_is_not_in_the_features(features, tmp_path):
    soundfile.write(tmp_path / "a.wav", make_music(0.5, seed=3), 22050)
    files.write_json(features.parent / "source.json", {"audio_files_dirs": {"": str(tmp_path)}})

    assert load_recorded(features, "a.wav.000.npy") is None


def test_audio_folder_is_relative_to_the_features(features):
    files.write_json(features.parent / "source.json", {"audio_files_dirs": {"": "../audio"}})

    assert load_recorded(features, "a.wav.000.npy") is not None


SOURCES = [[], {}, *({"audio_files_dirs": value} for value in (3, "gone", {"": 3}, {"": "gone"}))]


@pytest.mark.parametrize("source", SOURCES)
def test_without_an_audio_folder_there_is_no_recording(features, source):
    files.write_json(features.parent / "source.json", source)

    assert load_recorded(features, "a.wav.000.npy") is None


def test_mistakes_in_loading_a_recording_are_not_hidden(features, monkeypatch):
    def fail(*_, **__):
        raise ValueError("a mistake")

    monkeypatch.setattr(preprocess.LogSpectrogramExtractor, "extract", fail)

    with pytest.raises(ValueError, match="a mistake"):
        load_recorded(features, "a.wav.000.npy")
