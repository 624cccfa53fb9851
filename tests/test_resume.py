"""Runs of train.py that are interrupted, logged, or spread over processes."""

import os
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile

import autoencoder
import preprocess
import train
from autoencoder import Autoencoder
from helpers import (
    ROOT,
    SAMPLE_RATE,
    assert_close,
    compute_eagerly,
    find_free_port,
    make_settings,
    mount,
    name_folders,
    read_all,
    read_csv,
    run_script,
    start_script,
    write_tracks,
)
from support import command_line, dataset
from support.errors import UserError
from support.files import lock
from training.callbacks import BestWeights
from training.checkpoint import Checkpoint
from training.tensorboard import N_LOGGED_PIECES

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("eager")]

KILL_ITSELF = f"""import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import train
from helpers import compute_eagerly
from training.callbacks import BestWeights
BestWeights.on_epoch_begin = lambda self, epoch, logs=None: epoch == 2 and os.kill(os.getpid(), 9)
with compute_eagerly():
    train.main()
"""  # train.py, but that it kills itself when its third epoch begins
SMALL = ["--conv_filters", "8", "16", "--latent_space_dim", "6", "--batch_size", "8"]
SMALL += ["--validation_split", "0.25", "--flow_epochs", "0"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the features of eight short tracks, 32 pieces, and a run of 6 epochs."""
    folder = tmp_path_factory.mktemp("finished")
    write_tracks(folder / "audio", 8)
    preprocess.preprocess_folder(folder / "audio", folder / "saved_data", make_settings(), jobs=1)
    with compute_eagerly():
        run_training(folder, "model", "--epochs", "6", "--logs")
    return folder


@pytest.fixture
def folder(tmp_path, finished):
    """A copy of the finished folder."""
    return shutil.copytree(finished, tmp_path / "copy")


def make_arguments(folder, model, *flags):
    return [*name_folders(folder, model), *SMALL, "--no-logs", *flags]


def run_training(folder, model, *flags):
    train.main(make_arguments(folder, model, *flags))


def start_training(folder, model, *flags, **environment):
    return start_script(
        "train.py",
        *make_arguments(folder, model, *flags),
        cwd=folder,
        CUDA_VISIBLE_DEVICES="-1",
        **environment,
    )


def assert_same_weights(folder, other, atol):
    models = (Autoencoder.load(each).model.get_weights() for each in (folder, other))
    for values, expected in zip(*models, strict=True):
        np.testing.assert_allclose(values, expected, atol=atol)


def stop_in_third_epoch(self, epoch, logs=None):
    if epoch == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("is_killed", [True, False])
def test_a_run_that_is_stopped_resumes_and_ends_as_if_unbroken(
    folder, monkeypatch, capsys, is_killed
):
    flags = make_arguments(folder, "killed", "--epochs", "6")
    if is_killed:
        (folder / "kill_itself.py").write_text(KILL_ITSELF)
        run_script(folder / "kill_itself.py", *flags, cwd=folder, CUDA_VISIBLE_DEVICES="-1")
    else:
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as raised:
            patch.setattr(BestWeights, "on_epoch_begin", stop_in_third_epoch)
            patch.setattr(command_line.signals, "signal", lambda *_: None)
            command_line.run_script(lambda: train.main(flags), train.IF_INTERRUPTED)
        assert raised.value.code == (
            "interrupted: the same command with --resume goes on from the last checkpoint"
        )
        monkeypatch.setattr(train, "MEMORY_SHARE", 0)  # it goes on from a mapped file
    assert not (folder / "killed" / "parameters.json").exists()
    capsys.readouterr()

    run_training(folder, "killed", "--epochs", "6", "--resume")

    printed = capsys.readouterr().out.splitlines()
    first = next(line for line in printed if line.startswith("epoch "))
    assert not first.startswith("epoch 1/")
    assert_same_weights(folder / "killed", folder / "model", atol=1e-6)
    columns = ("epoch", "loss", "val_loss", "learning_rate")
    rows, unbroken = (
        np.array(
            [[float(row[name]) for name in columns] for row in read_csv(folder / m / "history.csv")]
        )
        for m in ("killed", "model")
    )
    np.testing.assert_allclose(rows, unbroken, atol=1e-6)


def test_a_finished_run_stays_as_it_is_until_it_is_made_longer(
    folder, tmp_path, monkeypatch, capsys
):
    before, edited = read_all(folder / "model"), tmp_path / "autoencoder.py"
    for flags, n in (((), 6), (("--epochs", "4"), 4)):  # as many epochs as it began with; fewer
        run_training(folder, "model", *flags, "--resume")
        printed, errors = capsys.readouterr()
        assert f"going on after epoch {n} of {n}" in printed and "loss" not in printed
        assert not errors
    after = read_all(folder / "model")
    for name in ("history.csv", "checkpoint.npz", "tracks.npz", "parameters.json"):
        assert after[name] == before[name], name
    edited.write_text((ROOT / "autoencoder.py").read_text() + "# another loss")
    monkeypatch.setattr(autoencoder, "__file__", str(edited))

    run_training(folder, "model", "--epochs", "8", "--resume")

    printed, errors = capsys.readouterr()
    assert "was edited since this run began" in errors
    epochs = [line.split(":")[0] for line in printed.splitlines()]
    assert [line for line in epochs if line.startswith("epoch ")] == ["epoch 7/8", "epoch 8/8"]
    rows = read_csv(folder / "model" / "history.csv")
    assert [int(row["epoch"]) for row in rows] == [*range(9)]


def test_a_run_that_lost_its_patience_is_finished_until_it_gets_more(folder, capsys):
    flags = ("--epochs", "12", "--learning_rate", "1")
    run_training(folder, "new", *flags, "--patience", "2", "--resume")
    printed = capsys.readouterr().out
    assert "nothing to resume" in printed and "epoch 1/12:" in printed
    counts = [len(read_csv(folder / "new" / "history.csv"))]
    for patience in ("2", "4"):
        run_training(folder, "new", *flags, "--patience", patience, "--resume")
        counts.append(len(read_csv(folder / "new" / "history.csv")))

    assert counts[0] == counts[1] < min(12, counts[2])


@pytest.mark.parametrize("kept", ["checkpoint.npz", "parameters.json"])
def test_a_run_is_replaced_only_when_asked(folder, kept):
    for path in (folder / "model").iterdir():
        if path.name in ("checkpoint.npz", "parameters.json") and path.name != kept:
            path.unlink()
    before = read_all(folder)

    with pytest.raises(UserError, match="add --resume .* --force .* another --model"):
        run_training(folder, "model", "--epochs", "1")

    assert read_all(folder) == before


@pytest.mark.parametrize("n_replaced", [None, 3])
def test_a_model_that_is_replaced_is_whole_or_not_there(folder, monkeypatch, n_replaced):
    def stop(self, epoch, logs=None):
        raise KeyboardInterrupt

    def replace(source, target):
        if Path(target).parent == folder / "model":
            if len(replaced) == n_replaced:
                raise KeyboardInterrupt
            replaced.append(target)
        real_replace(source, target)

    before, replaced, real_replace = read_all(folder / "model"), [], os.replace
    if n_replaced is None:
        monkeypatch.setattr(BestWeights, "on_epoch_begin", stop)
    else:
        run_training(folder, "other", "--epochs", "2")
        shutil.copy(folder / "other" / "checkpoint.npz", folder / "model")
        monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        flags = ("--force",) if n_replaced is None else ("--epochs", "2", "--resume")
        run_training(folder, "model", *flags)
    monkeypatch.undo()

    names = ("parameters.json", "model.weights.h5", "settings.json", "tracks.npz", "split.json")
    after = read_all(folder / "model")
    if n_replaced is None:
        assert all(after[name] == before[name] for name in names)
        assert after["old_checkpoint.npz"] == before["checkpoint.npz"]
        run_training(folder, "model", "--epochs", "6", "--resume")  # the run of the model
        assert read_all(folder / "model")["checkpoint.npz"] == before["checkpoint.npz"]
        return
    with pytest.raises(FileNotFoundError, match="train.py"):
        Autoencoder.load(folder / "model")
    run_training(folder, "model", "--epochs", "2", "--resume")
    assert_same_weights(folder / "model", folder / "other", atol=0)
    assert not [*(folder / "model").glob(".*.tmp")]


@pytest.mark.parametrize("size, name", [("40k", "logs"), ("200k", "checkpoint.npz")])
def test_a_full_disk_ends_a_run_which_goes_on_when_there_is_room(folder, size, name):
    with mount(folder / "disk", f"size={size}") as remount:
        with pytest.raises(OSError, match=f"No space left on device.*{name}"):
            run_training(folder, "disk/new", "--epochs", "6", "--logs")
        assert not [*(folder / "disk").rglob(".*.tmp")]

        remount("size=50m")
        run_training(folder, "disk/new", "--epochs", "6", "--logs", "--resume")

        assert_same_weights(folder / "disk" / "new", folder / "model", atol=1e-6)


def test_pieces_that_are_missing_are_said(folder, capsys):
    (features,) = {*(folder / "saved_data" / "spectrograms").rglob("0.wav.000.npy")}
    features.unlink()

    assert dataset.Features.of(folder / "saved_data").min_max_values

    assert "note: 1 pieces are missing in" in capsys.readouterr().err


def test_a_folder_of_others_is_left_alone(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "settings.json").write_text("{}")

    with pytest.raises(UserError, match="mine is not empty and was not written here"):
        run_training(folder, "mine", "--force")

    assert read_all(folder / "mine") == {"settings.json": b"{}"}
    with lock(folder / "new"), pytest.raises(UserError, match="another run is writing"):
        run_training(folder, "new")


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--epochs", "6", "--resume", "--seed", "1"), "seed 0, got 1"),
        (("--epochs", "6", "--resume", "--start", "random"), "start pca, got random"),
        (("--num_processes", "2"), "--num_processes and --process_id need --coordinator"),
        (("--epochs", "6", "--resume", "--latent_space_dim", "7"), "latent_space_dim 6, got 7"),
        (("--device", "gpu"), "no GPU is seen"),
        (("--coordinator", "127.0.0.1:1"), "--coordinator needs KERAS_BACKEND=jax"),
    ],
)
def test_bad_flags_are_refused_and_change_nothing(folder, monkeypatch, flags, message):
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    before = read_all(folder)

    with pytest.raises(UserError, match=message):
        run_training(folder, "model", "--logs", *flags)

    assert read_all(folder) == before


def test_two_processes_write_the_model_of_one_and_resume_together(folder):
    pytest.importorskip("jax")
    environment = {
        "KERAS_BACKEND": "jax",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    common = ["--epochs", "2", "--no-shift_windows"]  # each process would draw its own windows
    alone = start_training(folder, "alone", *common, **environment)
    for flags in (("--logs",), ("--resume",)):  # the second finds nothing to do
        joined = ["--coordinator", f"127.0.0.1:{find_free_port()}", "--num_processes", "2", *flags]
        processes = [
            start_training(
                folder, "together", *common, "--process_id", index, *joined, **environment
            )
            for index in range(2)
        ]
        for process in processes:
            _, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
    _, errors = alone.communicate(timeout=200)
    assert alone.returncode == 0, errors

    rows = read_csv(folder / "together" / "history.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert len(np.load(folder / "together" / "tracks.npz")["tracks"]) == 6
    assert list((folder / "together" / "logs").glob("events*"))
    # The last weights, for the best may be the start's.
    together, alone = (
        Checkpoint.load(folder / model / "checkpoint.npz") for model in ("together", "alone")
    )
    assert_close(together.state, alone.state)
    assert_close(together.best, alone.best)


def test_a_log_folder_that_cannot_be_written_stops_before_training(folder, capsys):
    with lock(folder / "new"):
        (folder / "new" / "logs").write_text("in the way")

    with pytest.raises(OSError, match="logs"):
        run_training(folder, "new", "--logs")

    assert "epoch" not in capsys.readouterr().out
    assert [*read_all(folder / "new")] == ["logs"]


@pytest.mark.parametrize(
    "array, message",
    [
        (np.full((128, 104), np.nan, np.float32), "is not a finite spectrogram"),
        (np.zeros((128, 103), np.float32), "must have the first one's shape"),
        (np.zeros((128, 104), "U3"), "is not a spectrogram"),
        (None, "is damaged"),
    ],
)
def test_a_bad_file_is_named_before_training(folder, capsys, array, message):
    path = sorted((folder / "saved_data" / "spectrograms").rglob("*.npy"))[13]
    if array is None:
        path.write_bytes(path.read_bytes()[:-1])
    else:
        np.save(path, array)

    with pytest.raises(UserError, match=f"{path.name}.*{message}"):
        run_training(folder, "new")

    assert "epoch" not in capsys.readouterr().out
    assert not read_all(folder / "new")


def read_logs(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    how = {"images": 0, "audio": 0, "scalars": 0}
    return EventAccumulator(str(folder / "model" / "logs"), size_guidance=how).Reload()


def test_logs_of_a_new_run_are_shown_in_place_of_those_of_the_old_one(folder):
    run_training(folder, "model", "--force", "--epochs", "2", "--logs")

    assert [event.step for event in read_logs(folder).Scalars("loss/training")] == [1, 2]


def test_logs_hold_losses_pictures_and_sound(finished):
    logs = read_logs(finished)
    heard, rate = soundfile.read(finished / "model" / "logs" / "reconstructed.wav")
    picture = matplotlib.image.imread(finished / "model" / "history.png")

    assert (len(heard), rate) == (6615, SAMPLE_RATE) and heard.any()
    assert picture.shape == (540, 960, 4) and len(np.unique(picture)) > 20
    history = read_csv(finished / "model" / "history.csv")
    for tag, column in (
        ("loss/training", "loss"),
        ("loss/validation", "val_loss"),
        ("learning_rate", "learning_rate"),
    ):
        logged = [(event.step, event.value) for event in logs.Scalars(tag)]
        expected = [(int(row["epoch"]), float(row[column])) for row in history[1:]]
        np.testing.assert_allclose(logged, expected, rtol=1e-6)  # float32
    tags = logs.Tags()
    assert len(tags["images"]) == N_LOGGED_PIECES
    assert len(tags["audio"]) == 2 * N_LOGGED_PIECES
    picture = logs.Images(tags["images"][0])[-1]
    assert (picture.step, picture.height, picture.width) == (6, 2 * 128, 104)
    sound = logs.Audio(tags["audio"][-1])[-1]
    assert sound.encoded_audio_string[:4] == b"RIFF" and sound.sample_rate == 22050
