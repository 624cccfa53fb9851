"""Runs that are interrupted, streamed, logged, or spread over devices, as a user starts them."""

import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, make_music

import preprocess
import train
from support import dataset
from training.logger import N_LOGGED_PIECES
from training.pieces import Pieces
from training.recorder import Checkpoint

ROOT = Path(__file__).resolve().parent.parent
FLAGS = [
    "--conv_filters", "8", "16", "--latent_space_dim", "6", "--batch_size", "2", "--precision",
    "float32", "--validation_split", "0.25",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the features of eight short tracks, 32 pieces, and a run of 12 epochs."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "audio").mkdir()
    for track in range(8):
        soundfile.write(folder / "audio" / f"{track}.wav", make_music(1.2, seed=track), SAMPLE_RATE)
    settings = dataset.Settings(
        dataset.FORMAT_VERSION, SAMPLE_RATE, 256, 64, 0.3, True, "all", preprocess.TOP_DB
    )
    preprocess.run(folder / "audio", folder / "saved_data", settings, jobs=1)
    run_training(folder, "model", "--epochs", "12", "--logs")
    return folder


@pytest.fixture
def folder(tmp_path, finished):
    """A copy of the finished folder."""
    return shutil.copytree(finished, tmp_path / "copy")


def start_training(folder, model, *flags, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "--model", model, "--no-logs", *FLAGS, *flags],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={
            **os.environ, "MPLCONFIGDIR": str(folder), "CUDA_VISIBLE_DEVICES": "-1", **environment
        },
    )  # fmt: skip


def run_training(folder, model, *flags, **environment):
    process = start_training(folder, model, *flags, **environment)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    return printed


def load_weights(folder):
    import h5py

    weights = {}
    with h5py.File(folder / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: weights.update({name: item[()]}) if hasattr(item, "dtype") else None
        )
    return weights


def assert_same_weights(folder, other, atol):
    weights, others = load_weights(folder), load_weights(other)
    assert weights.keys() == others.keys() and weights
    for name, values in weights.items():
        np.testing.assert_allclose(values, others[name], atol=atol, err_msg=name)


def read_history(folder):
    with open(folder / "history.csv", newline="") as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_resumes_and_ends_as_if_unbroken(folder, sent):
    process = start_training(folder, "killed", "--epochs", "12")
    for line in process.stdout:
        if line.startswith("epoch 4/"):
            break
    while len(read_history(folder / "killed")) < 4:  # so that the kill falls into the fifth
        time.sleep(0.005)
    process.send_signal(sent)
    _, errors = process.communicate()
    n_before = len(read_history(folder / "killed"))

    printed = run_training(folder, "killed", "--epochs", "12", "--resume")

    first = next(line for line in printed.splitlines() if line.startswith("epoch "))
    assert 4 <= n_before < 12 and not first.startswith("epoch 1/")
    if sent == signal.SIGINT:
        assert errors == (
            "interrupted: the same command with --resume goes on from the last checkpoint\n"
        )
    assert_same_weights(folder / "killed", folder / "model", atol=1e-6)
    columns = ("epoch", "loss", "val_loss", "learning_rate")
    rows, unbroken = (
        np.array([[float(row[name]) for name in columns] for row in read_history(folder / model)])
        for model in ("killed", "model")
    )
    np.testing.assert_allclose(rows, unbroken, atol=1e-6)


def test_resume_of_a_finished_run_changes_nothing(folder):
    weights = load_weights(folder / "model")

    printed = run_training(folder, "model", "--epochs", "12", "--resume")

    assert not [line for line in printed.splitlines() if line.startswith("epoch ")]
    again = load_weights(folder / "model")
    assert all((again[name] == values).all() for name, values in weights.items())


def test_resume_without_a_checkpoint_starts_at_the_beginning(folder):
    assert "epoch 1/1:" in run_training(folder, "new", "--epochs", "1", "--resume")


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--epochs", "12", "--resume", "--seed", "1"), "seed 0, got 1"),
        (("--epochs", "12", "--resume", "--patience", "1"), "patience None, got 1"),
        (("--num_processes", "2"), "--num_processes and --process_id need --coordinator"),
        (("--epochs", "12", "--resume", "--latent_space_dim", "7"), "latent_space_dim 6, got 7"),
        (("--device", "gpu"), "no GPU is seen"),
        (("--coordinator", "127.0.0.1:1"), "--coordinator needs KERAS_BACKEND=jax"),
    ],
)
def test_bad_flags_get_one_line_and_change_nothing(folder, flags, message):
    def read_all():
        return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}

    before = read_all()

    process = start_training(folder, "model", "--logs", *flags, KERAS_BACKEND="tensorflow")
    _, errors = process.communicate()

    assert process.returncode == 1 and len(errors.splitlines()) == 1 and message in errors
    assert read_all() == before


def test_resume_refuses_another_model_without_a_checkpoint(folder):
    (folder / "model" / "checkpoint.npz").unlink()

    process = start_training(folder, "model", "--resume", "--latent_space_dim", "7")
    _, errors = process.communicate()

    assert process.returncode == 1 and len(errors.splitlines()) == 1
    assert "model holds another model and no checkpoint" in errors


def test_two_processes_write_one_model_and_resume_together(folder):
    pytest.importorskip("jax")
    for flags in ((), ("--resume",)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        processes = [
            start_training(
                folder, "together", "--epochs", "2", "--logs", "--coordinator", address,
                "--num_processes", "2", "--process_id", str(index), *flags, KERAS_BACKEND="jax",
            )
            for index in range(2)
        ]  # fmt: skip
        for process in processes:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors

    assert [row["epoch"] for row in read_history(folder / "together")] == ["1", "2"]
    assert len(np.load(folder / "together" / "latents.npz")["key"]) == 24
    assert list((folder / "together" / "logs").glob("events*"))


def test_a_log_folder_that_cannot_be_written_stops_before_training(folder):
    (folder / "new").mkdir()
    (folder / "new" / "logs").write_text("in the way")

    process = start_training(folder, "new", "--logs")
    printed, errors = process.communicate()

    assert process.returncode == 1 and len(errors.splitlines()) == 1 and "logs" in errors
    assert "epoch" not in printed
    assert [path.name for path in (folder / "new").iterdir()] == ["logs"]


def test_a_damaged_checkpoint_is_named(folder):
    path = folder / "model" / "checkpoint.npz"
    path.write_bytes(path.read_bytes()[:-40])

    with pytest.raises(ValueError, match=r"checkpoint\.npz is damaged"):
        Checkpoint.load(folder / "model")


def test_patience_stops_a_run_that_gets_no_better(spectrograms):
    x_train = train.load_fsdd(spectrograms, None)
    rows = []

    train.train(
        x_train, 1e-12, 2, 50, conv_filters=(4,), latent_space_dim=2, precision="float32",
        patience=3, callbacks=[make_callback(on_epoch_end=lambda epoch, logs: rows.append(epoch))],
    )  # fmt: skip

    assert len(rows) < 50


def make_callback(**events):
    from autoencoder import keras

    return keras.callbacks.LambdaCallback(**events)


def test_streamed_training_ends_with_the_weights_of_the_one_in_memory(folder):
    printed = run_training(folder, "streamed", "--epochs", "12", "--stream")

    assert "streamed" in printed
    assert_same_weights(folder / "streamed", folder / "model", atol=1e-6)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((128, 10), np.nan, np.float32), "is no finite spectrogram"),
        (np.zeros((128, 9), np.float32), "must have the first one's shape"),
        (np.zeros((128, 10), "U3"), "is no finite spectrogram"),
        (None, "is damaged"),
    ],
)
def test_streaming_names_a_bad_file_before_it_trains(folder, array, message):
    path = sorted((folder / "saved_data" / "spectrograms").rglob("*.npy"))[13]
    n_bins, n_frames = np.load(path).shape
    if array is None:
        path.write_bytes(path.read_bytes()[:-1])
    else:
        shape = (n_bins, n_frames - (array.shape[1] == 9))
        np.save(path, np.full(shape, array.flat[0], array.dtype))

    process = start_training(folder, "new", "--stream")
    printed, errors = process.communicate()

    assert process.returncode == 1 and "epoch" not in printed
    assert len(errors.splitlines()) == 1 and path.name in errors and message in errors
    assert not (folder / "new").exists()


def test_pieces_are_used_like_the_array_of_them(spectrograms):
    keys = dataset.list_keys(spectrograms)
    pieces = Pieces(spectrograms, (8, 20), keys)
    images = train.load_fsdd(spectrograms, (8, 20))

    assert (pieces.shape, len(pieces), pieces.nbytes) == (images.shape, len(images), images.nbytes)
    for index in (2, slice(1, 5, 2), slice(4, 99), np.array([3, 0, 3])):
        np.testing.assert_array_equal(pieces[index], images[index])


def test_logs_hold_errors_pictures_and_sound(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logs = EventAccumulator(
        str(finished / "model" / "logs"), size_guidance={"images": 0, "audio": 0, "scalars": 0}
    ).Reload()

    history = read_history(finished / "model")
    for tag, column in (
        ("error/training", "loss"), ("error/validation", "val_loss"),
        ("learning_rate", "learning_rate"),
    ):  # fmt: skip
        logged = [(event.step, event.value) for event in logs.Scalars(tag)]
        expected = [(int(row["epoch"]), float(row[column])) for row in history]
        np.testing.assert_allclose(logged, expected, rtol=1e-6)  # float32
    tags = logs.Tags()
    assert len(tags["images"]) == N_LOGGED_PIECES
    assert len(tags["audio"]) == 2 * N_LOGGED_PIECES
    picture = logs.Images(tags["images"][0])[-1]
    assert (picture.step, picture.height, picture.width) == (12, 2 * 128, 104)
    sound = logs.Audio(tags["audio"][-1])[-1]
    assert sound.encoded_audio_string[:4] == b"RIFF" and sound.sample_rate == 22050
