import io
import sys

import numpy as np
import pytest
import soundfile

import generate
import preprocess
from generation.modes import Item, make_file_names
from generation.sources import Recordings, Sources
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
    assert len(select(num_spectrograms=99)[2]) == 30
    assert select(seed=1)[2] == select(seed=1)[2] != select(seed=2)[2]


def test_select_by_name_keeps_the_order_and_lists_names_similar_to_an_unknown_one():
    assert select(files=[KEYS[7], KEYS[2][:-4]])[2] == [KEYS[7], KEYS[2]]
    with pytest.raises(UserError, match=r"no spectrogram is called .*00003\.wav\.000"):
        select(files=["jazz/song.0003.wav.000"])
    with pytest.raises(UserError, match="has no min-max values: run preprocess"):
        generate.select_spectrograms([0], ["new.npy"], MIN_MAX)


def test_file_names_are_distinct_and_fit_a_file_system():
    keys = ["a/b.wav.000.npy", "a__b.wav.000.npy", "ü" * 400 + "1.npy", "ü" * 400 + "2.npy"]

    names = make_file_names(keys)

    assert names[0] == "a__b.wav.000"
    assert len(set(names)) == 4
    assert max(len(name.encode()) for name in names) < 250


def test_sounds_of_an_item_are_scaled_together_only_if_one_clips(tmp_path):
    quiet, loud = np.array([[0.5, -0.25], [0.1, 0.2]]), np.array([[-2.0, 1.0], [0.4, -0.8]])
    save_dirs = {kind: tmp_path / kind for kind in ("original", "generated")}

    def save(name, generated):
        item = Item(name, name, {"original": quiet, "generated": generated}, {})
        item, paths = generate.save_item(item, save_dirs, 22050)
        return item.figures, *[soundfile.read(path)[0] for path in paths.values()]

    figures, original, generated = save("loud", loud)
    assert np.abs(generated).max() == pytest.approx(generate.HEADROOM, abs=1e-4)  # 16 bits
    for written, signal in ((original, quiet), (generated, loud)):
        np.testing.assert_allclose(written, 0.495 * signal.T, atol=1e-3)
    assert figures == {"scaled to avoid clipping by": pytest.approx(0.495)}
    figures, original, _ = save("quiet", quiet)
    np.testing.assert_allclose(original, quiet.T, atol=1e-4)
    assert figures == {}


def test_pairs_are_made_if_there_is_no_command():
    options = generate.read_options(["--seed", "3"])

    assert options == generate.read_options(["pairs", "--count", "5", "--seed", "3"])
    assert generate.NUM_SPECTROGRAMS == options.count == 5


@pytest.mark.parametrize("command", [["sample", "2"], ["fill", "a.wav", "1", "2"], ["app"]])
def test_flags_of_every_command_may_stand_before_it_and_behind_it(command):
    flags = ["--saved_data", "s", "--model", "m", "--samples", "t", "--seed", "1", "--no-detail"]
    before, behind = generate.read_options([*flags, *command]), generate.read_options(command)

    assert before == generate.read_options([*command, *flags])
    assert before == generate.read_options([*flags[:4], *command, *flags[4:]])
    names = ("saved_data", "model", "samples", "seed", "detail")
    assert not [name for name in names if getattr(before, name) == getattr(behind, name)]


def test_numbers_below_zero_are_no_flags():
    asked, explored = (
        generate.read_options(argv.split())
        for argv in ("continue song.mp3 -20 --count 2", "explore 2 -1 -.5 --temperature 1")
    )

    assert (asked.file, asked.seconds, asked.count) == ("song.mp3", -20, 2)
    assert (explored.offsets, explored.temperature) == ([2, -1, -0.5], 1)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("explore 1 --toward jazz", "unrecognized arguments: --toward"),
        ("pairs --files a --count 2", "not allowed with argument"),
        ("continue song.mp3 x", "argument SECONDS: invalid float value: 'x'"),
        ("fill song.mp3 -1 2", "argument FROM: must be at least 0"),
        ("sample 1 --temperature -1", "must be at least 0"),
        ("compose 0", "must be 0.01"),
        ("sample 0", "must be at least 1"),
        ("smaple 2", "invalid choice: 'smaple' (choose from"),
    ],
)
def test_a_command_that_cannot_be_is_refused_in_a_line(capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        generate.main(flags.split())

    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_lists_the_commands_and_that_of_each_tells_its_defaults(capsys):
    def read_help(*command):
        with pytest.raises(SystemExit, match="0"):
            generate.main([*command, "--help"])
        return " ".join(capsys.readouterr().out.split())

    for name in ("pairs", "songs", "sample", "continue", "tour", "app"):
        assert f" {name} " in read_help()
        assert "--model MODEL folder that train.py wrote (default: model)" in read_help(name)
    assert "--temperature TEMPERATURE lower is more typical (default: 1.0)" in read_help("sample")
    assert "chosen at random (default: 5)" in read_help("pairs")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream, is_shown", [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_shown_on_a_terminal_alone(monkeypatch, stream, is_shown):
    monkeypatch.setattr(sys, "stderr", stream)

    assert [*show_progress("abc", 3, "letters")] == ["a", "b", "c"]

    assert ("letters:   0%" in stream.getvalue()) == is_shown


@pytest.fixture
def features(tmp_path, write_audio):
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
        generate.load_spectrograms(Sources(tmp_path / "model", dataset.Features(features)))


def load_recorded(features, key):
    return Recordings(dataset.Features(features)).load(key, dataset.load_spectrogram(features, key))


def test_recording_is_what_a_feature_was_made_of(features):
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


def test_a_recording_is_looked_for_beside_the_features_and_compared_with_them(features, tmp_path):
    soundfile.write(tmp_path / "a.wav", make_music(0.5, seed=3), 22050)
    path = features.parent / "source.json"
    for folder, is_found in (("../audio", True), ("gone", False), (str(tmp_path), False)):
        files.write_json(path, {"audio_files_dir": folder})
        assert (load_recorded(features, "a.wav.000.npy") is not None) == is_found
    path.unlink()
    assert load_recorded(features, "a.wav.000.npy") is None
