import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import make_music

import preprocess

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def saved_data(tmp_path, write_audio, make_settings):
    """Features of four short tracks."""
    for track in range(4):
        write_audio(f"g/{track}.wav", make_music(1.2, seed=track))
    preprocess.run(tmp_path / "audio", tmp_path / "saved_data", make_settings(), jobs=1)
    return tmp_path / "saved_data"


def run_benchmark(name, folder, *flags):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / name), *flags], cwd=folder, text=True,
        capture_output=True, env={**os.environ, "MPLCONFIGDIR": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_rows(path):
    with open(path, newline="") as file:
        return [*csv.DictReader(file)]


def test_reconstruction_measures_every_method_on_the_tracks_held_out(tmp_path, saved_data):
    printed = run_benchmark(
        "reconstruction.py", tmp_path, "--saved_data", str(saved_data), "--held_out", "*/3.wav",
        "--latent_space_dims", "3", "--budget_s", "4",
    )  # fmt: skip

    rows = {row["method"]: row for row in read_rows(tmp_path / "reconstruction.csv")}
    assert "12 training pieces, 4 held out" in printed
    assert [*rows] == [
        "untouched, zero-phase istft", "untouched, Griffin-Lim", "mean spectrogram", "PCA",
        "PCA of windows", "plain recipe", "ours",
    ]  # fmt: skip
    assert all(float(row["mel_distance_db"]) > 0 for row in rows.values())
    sounds = [float(row["mel_distance_db"]) for row in rows.values()]
    assert min(sounds) == float(rows["untouched, Griffin-Lim"]["mel_distance_db"])
    # The mean of the training pieces, against the oracle.
    pieces = {
        path.name: np.load(path) for path in sorted((saved_data / "spectrograms").rglob("*.npy"))
    }
    held = np.stack([piece for name, piece in pieces.items() if name.startswith("3.wav")])
    kept = np.stack([piece for name, piece in pieces.items() if not name.startswith("3.wav")])
    error = np.square(held - kept.mean(axis=0)).mean()
    assert float(rows["mean spectrogram"]["held_out_mse"]) == pytest.approx(error, rel=1e-4)
    assert int(rows["ours"]["steps"]) > 0 and int(rows["plain recipe"]["steps"]) > 0
    assert (tmp_path / "reconstruction.png").stat().st_size > 5000


def test_reconstruction_refuses_a_pattern_that_holds_nothing_out(tmp_path, saved_data):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "reconstruction.py"), "--saved_data",
         str(saved_data), "--held_out", "nothing"], cwd=tmp_path, text=True, capture_output=True,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.splitlines() == ["error: 0 of 16 pieces are held out: see --held_out"]


def test_training_speed_times_both_precisions(tmp_path):
    run_benchmark(
        "training_speed.py", tmp_path, "--shape", "64", "32", "1", "--batch_size", "2",
        "--n_steps", "2", "--matrix_size", "64",
    )  # fmt: skip

    rows = read_rows(tmp_path / "training_speed.csv")
    ours = [row for row in rows if row["program"].startswith("ours")]
    assert [row["precision"] for row in ours] == ["float32", "bfloat16"]
    assert all(float(row["share_of_matrix_product"]) > 0 for row in ours)


def test_streaming_measures_both_paths(tmp_path):
    run_benchmark(
        "streaming.py", tmp_path, "--n_pieces", "256", "--n_in_memory", "192", "--shape", "32",
        "16", "--n_steps", "2", "--folder", str(tmp_path),
    )  # fmt: skip

    rows = read_rows(tmp_path / "streaming.csv")
    assert [(row["path"], row["pieces"]) for row in rows] == [
        ("streamed", "256"), ("in memory", "192"), ("streamed", "192"),
    ]  # fmt: skip
    assert all(float(row["pieces_per_s"]) > 0 for row in rows)
    assert 0 < float(rows[0]["resident_gb"]) < 3
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_phase_recovery_measures_every_method(tmp_path, write_audio):
    write_audio("a.wav", make_music(5.5))

    printed = run_benchmark(
        "phase_recovery.py", tmp_path, "--audio_files_dir", "audio", "--n_pieces", "1", "--frame",
        "512", "256", "--kinds", "true",
    )  # fmt: skip

    rows = read_rows(tmp_path / "phase_recovery.csv")
    quality = {
        (row["method"], row["n_iter"]): float(row["spectral_convergence_db"]) for row in rows
    }
    assert quality["ours", "40"] < quality["librosa", "32"] < quality["magnitude-only istft", "0"]
    assert all(float(row["single_s_per_s"]) > 0 for row in rows)
    assert "ours at 40 iterations is" in printed
    assert (tmp_path / "phase_recovery.png").stat().st_size > 5000


def test_preprocessing_measures_both_programs_and_every_step(tmp_path, write_audio):
    write_audio("a.wav", make_music(6.2))

    printed = run_benchmark(
        "preprocessing.py", tmp_path, "--audio_files_dir", "audio", "--n_files", "2",
        "--n_files_memory", "3", "--n_rounds", "1", "--folder", str(tmp_path),
    )  # fmt: skip

    rows = read_rows(tmp_path / "preprocessing.csv")
    assert [row["program"] for row in rows] == [
        *["serial librosa loop", "ours", "ours, again"] * 3, "ours"
    ]  # fmt: skip
    assert all(float(row["seconds"]) > 0 and float(row["peak_mb"]) > 0 for row in rows)
    steps = read_rows(tmp_path / "preprocessing_steps.csv")
    shares = [float(row["share"]) for row in steps if not row["step"].startswith("(")]
    assert sum(shares) == pytest.approx(3, abs=0.01)  # one for each kind of file
    assert printed.count("times the serial loop") == 3
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["audio"]
