import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import make_music, make_tone

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--frame_size", "256", "--hop_length", "64", "--duration", "0.5", "--jobs", "1"]
QUICK = ["--epochs", "2", "--conv_filters", "4", "16", "16", "--latent_space_dim", "8"]


def run(folder, script, *flags):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *flags], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "MPLCONFIGDIR": str(folder)},
    )  # fmt: skip


@pytest.mark.parametrize("channels", ["--mono", "--no-mono"])
def test_three_scripts_turn_audio_into_pairs_of_wavs(tmp_path, write_audio, channels):
    write_audio("a/x.wav", make_music(1.6))
    write_audio("b/x.wav", make_music(1.6, seed=1), 44100)
    write_audio("b/low rate.flac", make_tone(440, 0.9, 8000), 8000)
    write_audio("b/stereo.ogg", np.stack([make_tone(300), make_tone(500)], axis=1))
    write_audio("b/short.wav", make_tone(440, 0.2))
    write_audio("silence.wav", np.zeros(22050))

    steps = [
        run(tmp_path, "preprocess.py", "--audio_files_dir", "audio", *SMALL, channels, "--strict"),
        run(tmp_path, "train.py", *QUICK, "--validation_split", "0.2"),
        run(tmp_path, "generate.py", "--num_spectrograms", "99"),
    ]

    assert [step.returncode for step in steps] == [0, 0, 0], [step.stderr for step in steps]
    assert all("arning" not in step.stderr for step in steps), [step.stderr for step in steps]
    originals = sorted((tmp_path / "samples" / "original").glob("*.wav"))
    generated = sorted((tmp_path / "samples" / "generated").glob("*.wav"))
    assert [path.name for path in originals] == [path.name for path in generated]
    assert len(originals) == 12
    for path in originals + generated:
        signal, sample_rate = soundfile.read(path, always_2d=True)
        assert sample_rate == 22050
        assert signal.shape == (11025, 1 if channels == "--mono" else 2)
        assert ("silence" in path.name) == (not signal.any()) or path in generated
    for picture in ("model/history.png", "samples/spectrograms.png"):
        assert (tmp_path / picture).stat().st_size > 5000
    latents = np.load(tmp_path / "model" / "latents.npz")
    assert latents["latent"].shape == (len(latents["key"]), 8)
    assert {*latents["genre"]} <= {"a", "b", ""}


def test_each_script_names_the_command_to_run_first(tmp_path):
    done = run(tmp_path, "train.py")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "run preprocess.py first" in done.stderr

    done = run(tmp_path, "generate.py")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "run train.py first" in done.stderr

    (tmp_path / "empty").mkdir()
    done = run(tmp_path, "preprocess.py", "--audio_files_dir", "empty")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "empty is empty" in done.stderr
    assert not (tmp_path / "saved_data").exists()


def test_generate_without_a_model_names_train(tmp_path, write_audio):
    write_audio("a.wav", make_tone())
    assert run(tmp_path, "preprocess.py", "--audio_files_dir", "audio", *SMALL).returncode == 0

    done = run(tmp_path, "generate.py")

    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "run train.py first" in done.stderr
