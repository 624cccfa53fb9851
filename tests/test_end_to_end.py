import json

import numpy as np
import pytest
import soundfile

import generate
import preprocess
import train
from helpers import make_music, make_tone, run_script
from support import command_line

SMALL = ["--frame_size", "256", "--hop_length", "64", "--duration", "0.5", "--jobs", "1"]
QUICK = ["--epochs", "2", "--conv_filters", "4", "16", "16", "--latent_space_dim", "8"]
QUICK += ["--flow_epochs", "1"]


@pytest.fixture
def audio(write_audio):
    """A folder with many kinds of files, 12 pieces."""
    write_audio("a/x.wav", make_music(1.6))
    write_audio("b/x.wav", make_music(1.6, seed=1), 44100)
    write_audio("b/low rate.flac", make_tone(440, 0.9, 8000), 8000)
    write_audio("b/stereo.ogg", np.stack([make_tone(300), make_tone(500)], axis=1))
    write_audio("b/short.wav", make_tone(440, 0.2))
    write_audio("silence.wav", np.zeros(22050))


def assert_pairs(folder, n_pairs):
    """The folder holds so many pairs of sounds, and a model with its tracks and its prior."""
    originals = sorted((folder / "samples" / "original").glob("*.wav"))
    generated = sorted((folder / "samples" / "generated").glob("*.wav"))
    assert [path.name for path in originals] == [path.name for path in generated]
    assert len(originals) == n_pairs
    for path in originals + generated:
        signal, sample_rate = soundfile.read(path, always_2d=True)
        assert sample_rate == 22050
        assert signal.shape == (11025, 2)
        assert ("silence" in path.name) == (not signal.any()) or path in generated
    tracks = np.load(folder / "model" / "tracks.npz")
    assert {*tracks["genres"]} <= {"a", "b", ""}
    with np.load(folder / "model" / "prior.npz") as prior:
        assert all(prior[name].dtype == np.float32 for name in prior.files if "weight" in name)


@pytest.mark.slow
def test_three_scripts_turn_audio_into_pairs_of_wavs(tmp_path, audio):
    flags = ["--audio_files_dir", "audio", *SMALL, "--no-mono"]  # tests of modes are in mono
    # What a user has set for other programs changes nothing.
    own = {"floatx": "float16", "image_data_format": "channels_first", "backend": "tensorflow"}
    (tmp_path / "keras.json").write_text(json.dumps({**own, "epsilon": 0.1}))
    environment = {"KERAS_HOME": str(tmp_path)}

    steps = [
        run_script("preprocess.py", *flags, cwd=tmp_path),
        run_script("train.py", *QUICK, "--validation_split", "0.2", cwd=tmp_path, **environment),
        run_script("generate.py", "pairs", "--count", "99", cwd=tmp_path, **environment),
    ]

    assert [step.returncode for step in steps] == [0, 0, 0], [step.stderr for step in steps]
    assert all("arning" not in step.stderr for step in steps), [step.stderr for step in steps]
    assert_pairs(tmp_path, n_pairs=12)


@pytest.mark.parametrize(
    "main, flags, message",
    [
        (train.main, [], "run preprocess.py first"),
        (generate.main, ["--model", "mine"], "there is no mine/parameters.json: run train.py"),
        (preprocess.main, ["--audio_files_dir", "empty"], "empty is empty"),
    ],
)
def test_each_script_names_the_command_to_run_first(tmp_path, monkeypatch, main, flags, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line.signals, "signal", lambda *arguments: None)
    (tmp_path / "empty").mkdir()

    with pytest.raises(SystemExit) as raised:
        command_line.run_script(lambda: main(flags))

    (line,) = raised.value.code.splitlines()  # Python prints it, with exit status 1
    assert line.startswith("error: ") and message in line
    assert not (tmp_path / "saved_data").exists()
