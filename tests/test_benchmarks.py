from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import benchmarks.busy
import benchmarks.phase_recovery
import benchmarks.preprocessing
import benchmarks.reconstruction
import benchmarks.training
import preprocess
import train
from autoencoder import Autoencoder
from helpers import make_music, make_settings, read_csv, write_tracks
from support import dataset
from support.dataset import load_split
from support.errors import UserError


@pytest.fixture(autouse=True)
def run_small_in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FIRST_FILTERS", "FILTERS"):  # of the default network
        monkeypatch.setattr(f"autoencoder.{name}", 16)


@pytest.fixture
def saved_data(tmp_path):
    """Features of four short tracks."""
    write_tracks(tmp_path / "audio" / "g", 4)
    preprocess.preprocess_folder(tmp_path / "audio", "saved_data", make_settings(), jobs=1)
    return tmp_path / "saved_data"


@pytest.mark.slow
def test_reconstruction_measures_every_method_on_the_tracks_held_out(saved_data, capsys, eager):
    benchmarks.reconstruction.main(
        ["--held_out", "*/3.wav", "--latent_space_dims", "7", "--epochs", "1", "--sounds", "wav"]
    )

    rows = {row["method"]: row for row in read_csv("reconstruction.csv")}
    assert "12 training pieces, 4 held out" in capsys.readouterr().out
    assert [*rows] == [
        "untouched, zero-phase istft",
        "untouched, Griffin-Lim",
        "mean spectrogram",
        "PCA",
        "PCA of windows",
        "ours",
    ]
    assert all(float(row["mel_distance_db"]) > 0 for row in rows.values())
    sounds = [float(row["mel_distance_db"]) for row in rows.values()]
    assert min(sounds) == float(rows["untouched, Griffin-Lim"]["mel_distance_db"])
    folders = {path.name: len([*path.iterdir()]) for path in Path("wav").iterdir()}
    assert folders.keys() >= {"recorded", "untouched", "PCA_7", "ours_7"}
    assert {*folders.values()} == {4}
    # The mean of the training pieces, against the oracle.
    pieces = {
        path.name: np.load(path) for path in sorted((saved_data / "spectrograms").rglob("*.npy"))
    }
    held_out = np.stack([piece for name, piece in pieces.items() if name.startswith("3.wav")])
    learned = np.stack([piece for name, piece in pieces.items() if not name.startswith("3.wav")])
    weights = 1 / (1 + np.arange(128) * 22050 / 256 / 700)[:, np.newaxis]
    error = (weights / weights.mean() * np.square(held_out - learned.mean(axis=0))).mean()
    assert float(rows["mean spectrogram"]["held_out_error"]) == pytest.approx(error, rel=1e-4)
    assert float(rows["ours"]["seconds"]) > 0


@pytest.mark.slow
def test_reconstruction_measures_a_trained_model_on_what_it_held_out(saved_data, capsys, eager):
    small = ["--conv_filters", "4", "8", "--latent_space_dim", "3", "--epochs", "1", "--no-logs"]
    small += ["--flow_epochs", "0"]
    train.main([*small, "--validation_split", "0.25"])

    benchmarks.reconstruction.main(["--model", "model", "--methods", "ours"])

    (row,) = [row for row in read_csv("reconstruction.csv") if row["method"] == "ours"]
    assert "12 training pieces, 4 held out" in capsys.readouterr().out
    keys = dataset.list_keys(saved_data / "spectrograms")
    held_out = load_split("model/split.json")["valid"]
    keys = [key for key in keys if dataset.get_track(key) in held_out]
    images = train.load_fsdd(saved_data / "spectrograms", keys=keys).astype(np.float32)
    autoencoder = Autoencoder.load("model")
    squares = np.square(autoencoder.reconstruct(images)[0] - images)
    error = (autoencoder.row_weights * squares).mean()
    assert float(row["held_out_error"]) == pytest.approx(error, rel=1e-4)  # float32
    assert row["latent_space_dim"] == str(3 * autoencoder.n_steps)


def test_reconstruction_refuses_a_pattern_that_holds_nothing_out(saved_data):
    with pytest.raises(UserError, match="^0 of 16 pieces are held out: see --held_out$"):
        benchmarks.reconstruction.main(["--held_out", "nothing"])


@pytest.mark.slow
def test_training_times_the_network_and_what_a_window_costs(tmp_path, monkeypatch, capsys, eager):
    few = {"MATRIX_SIZE": 64, "N_ROUNDS": 1, "N_WARM_UP": 1, "PRECISIONS": ["bfloat16"]}
    for name, value in few.items():
        monkeypatch.setattr(benchmarks.training, name, value)

    benchmarks.training.main(["--n_pieces", "64", "--shape", "32", "16", "--n_steps", "2"])

    rows = read_csv("training.csv")
    ours = [row for row in rows if row["program"] != "PyTorch"]
    assert [(row["program"], row["precision"]) for row in ours] == [
        ("train.py", "bfloat16"),
        ("ours", "bfloat16"),
    ]
    assert all(float(row["steps_per_s"]) > 0 for row in rows)
    assert all(float(row["pieces_per_s"]) > 0 for row in rows)
    assert all(float(row["share_of_matrix_product"]) > 0 for row in rows)
    assert "ms to gather" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["training.csv"]


@pytest.mark.slow
def test_busy_times_the_three_scripts_idle_and_beside_loops(monkeypatch, capsys):
    commands = [["a.py", "--x", "1"], ["b.py", "--y", "2"]]
    monkeypatch.setattr(benchmarks.busy, "make_commands", lambda folder: commands)
    monkeypatch.setattr(benchmarks.busy, "render_demo", lambda: None)
    monkeypatch.setattr(benchmarks.busy, "ROOT", Path.cwd())
    for name in ("a.py", "b.py"):
        Path(name).write_text("sum(range(10**7))")

    benchmarks.busy.main(["--rounds", "1"])

    rows = read_csv("busy.csv")
    assert [row["command"] for row in rows] == ["a.py --x 1", "b.py --y 2"]
    ratios = [float(row["busy_s"]) / float(row["idle_s"]) for row in rows]
    assert [float(row["ratio"]) for row in rows] == pytest.approx(ratios)
    assert min(ratios) > 0 and capsys.readouterr().out.count("s busy") == 2


@pytest.mark.slow
def test_phase_recovery_measures_every_method(write_audio, monkeypatch, capsys):
    write_audio("a.wav", make_music(5.5))
    few = {"LIBROSA_ITERATIONS": (32,), "OUR_ITERATIONS": (0, 40), "N_ROUNDS": 1}
    for name, value in few.items():
        monkeypatch.setattr(benchmarks.phase_recovery, name, value)

    benchmarks.phase_recovery.main(
        ["--audio_files_dir", "audio", "--n_pieces", "1", "--frame", "512", "256"]
        + ["--kinds", "true"]
    )

    rows = read_csv("phase_recovery.csv")
    quality = {
        (row["method"], row["n_iter"]): float(row["spectral_convergence_db"]) for row in rows
    }
    assert quality["ours", "40"] < quality["librosa", "32"] < quality["magnitude-only istft", "0"]
    assert all(float(row["single_s_per_s"]) > 0 for row in rows)
    assert "ours at 40 iterations is" in capsys.readouterr().out
    assert len(np.unique(matplotlib.image.imread("phase_recovery.png"))) > 20


@pytest.mark.slow
def test_preprocessing_measures_both_programs_and_every_step(
    tmp_path, write_audio, monkeypatch, capsys
):
    write_audio("a.wav", make_music(6.2))
    for kind in ("MP3", "OGG"):
        monkeypatch.delitem(benchmarks.preprocessing.KINDS, f"{kind}, 44.1 kHz stereo")

    benchmarks.preprocessing.main(
        ["--audio_files_dir", "audio", "--n_files", "2", "--n_files_memory", "3"]
        + ["--n_rounds", "1", "--folder", ".", "--jobs", "1"]
    )

    rows = read_csv("preprocessing.csv")
    programs = ["serial librosa loop", "ours", "ours, again"]
    assert [row["program"] for row in rows] == [*programs, "ours"]
    assert all(float(row["seconds"]) > 0 and float(row["peak_mb"]) > 0 for row in rows)
    assert float(rows[0]["disk_mb"]) > 1.9 * float(rows[1]["disk_mb"]) > 0
    steps = read_csv("preprocessing_steps.csv")
    shares = [float(row["share"]) for row in steps if not row["step"].startswith("(")]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    assert capsys.readouterr().out.count("times the serial loop") == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["audio"]
