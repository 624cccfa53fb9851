"""data/gtzan/prepare.py and the split beside it, on a miniature of GTZAN with its faults."""

import runpy
import shutil
import sys
import types

import numpy as np
import pytest
import soundfile

import preprocess
import train
from helpers import ROOT, SAMPLE_RATE, make_settings, make_tone, run_script
from support.dataset import load_split
from support.errors import UserError
from training.splits import split_by_list

SCRIPT = "data/gtzan/prepare.py"
SPLIT = ROOT / "data" / "gtzan" / "split.json"
DAMAGED = "jazz/jazz.00054"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(ROOT / SCRIPT))


@pytest.fixture(scope="module")
def archive(tmp_path_factory, script):
    """What Kaggle's download unpacks to, in small: 1000 tracks, one damaged, and pictures."""
    folder = tmp_path_factory.mktemp("archive")
    soundfile.write(folder / "a.wav", make_tone(duration=0.05), SAMPLE_RATE)
    whole = (folder / "a.wav").read_bytes()
    (folder / "a.wav").unlink()
    for track in script["list_tracks"]():
        path = folder / "Data" / "genres_original" / f"{track}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(whole if track != DAMAGED else b"\0" * 100 + whole)
        picture = folder / "Data" / "images_original" / f"{track.replace('.', '')}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.touch()
    return folder


@pytest.fixture
def prepare(script, capfd):
    """Runs the script's main on a folder and a source; what it prints, and nothing on stderr."""

    def prepare(folder, source):
        script["main"](["--folder", str(folder), "--source", str(source)])
        printed, errors = capfd.readouterr()
        assert errors == ""
        return printed

    return prepare


def test_a_source_is_taken_the_damaged_track_named_and_nothing_replaced(tmp_path, archive, prepare):
    mine = tmp_path / "genres" / "blues" / "blues.00003.wav"
    mine.parent.mkdir(parents=True)
    soundfile.write(mine, make_tone(880, 0.1), SAMPLE_RATE)
    (tmp_path / "genres" / "notes.txt").write_text("mine")
    before = mine.read_bytes()

    printed = prepare(tmp_path / "genres", archive)

    assert "999 tracks taken" in printed and "999 of 1000 tracks are whole" in printed
    assert f"damaged: {DAMAGED} not readable as audio" in printed
    assert len([*(tmp_path / "genres").rglob("*.wav")]) == 1000
    assert len([*(tmp_path / "genres").iterdir()]) == 10 + 1
    assert mine.read_bytes() == before
    assert (tmp_path / "genres" / "notes.txt").read_text() == "mine"


def test_the_first_tracks_are_taken_alone_and_others_may_follow(tmp_path, archive, script, capsys):
    main = script["main"]
    for count, line in (("2", "20 of 20"), ("3", "30 of 30"), ("2", "30 of 30")):
        folders = ["--folder", str(tmp_path / "genres"), "--source", str(archive)]
        main([*folders, "--tracks_per_genre", count])
        assert f"{line} tracks are whole" in capsys.readouterr().out
    assert len([*(tmp_path / "genres").rglob("*.wav")]) == 30


def test_other_damaged_tracks_and_missing_ones_are_errors(tmp_path, archive, prepare, capfd):
    source = shutil.copytree(archive / "Data" / "genres_original", tmp_path / "source")
    path = source / "pop" / "pop.00007.wav"
    soundfile.write(path, make_tone(), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    with pytest.raises(UserError, match="2 tracks are damaged"):
        prepare(tmp_path / "genres", source)
    assert "damaged: pop/pop.00007 ends 0.5 s before the length" in capfd.readouterr().out

    path.unlink()
    shutil.rmtree(source / "rock")
    missing = r"101 tracks are missing: pop/pop\.00007, rock/rock\.00000, .* and 91 more"
    with pytest.raises(UserError, match=missing):
        prepare(tmp_path / "others", source)
    printed, errors = capfd.readouterr()
    assert "898 of 1000 tracks are whole" in printed and errors == ""


def test_a_source_without_the_genres_is_one_clear_error(tmp_path):
    (tmp_path / "music").mkdir()

    done = run_script(SCRIPT, "--folder", "genres", "--source", "music", cwd=tmp_path)

    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "music holds no folder of genres" in done.stderr
    assert not (tmp_path / "genres").exists()


def test_the_download_is_kaggles(tmp_path, archive, script, monkeypatch):
    asked = []

    def dataset_download(handle):
        asked.append(handle)
        return str(archive)

    kagglehub = types.SimpleNamespace(dataset_download=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", kagglehub)

    script["prepare"](None, tmp_path)
    script["prepare"](None, tmp_path)  # all is there: nothing to download

    assert asked == ["andradaolteanu/gtzan-dataset-music-genre-classification"]
    assert len([*tmp_path.rglob("*.wav")]) == 1000


def test_a_download_that_fails_is_one_clear_error(tmp_path, script, monkeypatch):
    def fail(handle):
        raise ConnectionError("no route to host")

    monkeypatch.setitem(sys.modules, "kagglehub", types.SimpleNamespace(dataset_download=fail))
    with pytest.raises(UserError, match=r"the download failed \(no route to host\)"):
        script["prepare"](None, tmp_path)

    monkeypatch.setitem(sys.modules, "kagglehub", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install -r requirements-extra\.txt"):
        script["prepare"](None, tmp_path)


def test_the_split_shipped_is_the_fault_filtered_one(script):
    parts = load_split(SPLIT)

    counts = {part: len(tracks) for part, tracks in parts.items()}
    assert counts == {"train": 443, "valid": 197, "test": 290}
    tracks = {f"{track}.wav" for track in script["list_tracks"]()}
    assert set().union(*parts.values()) <= tracks
    assert f"{DAMAGED}.wav" in parts["train"]
    assert len({track.split("/")[0] for track in parts["test"]}) == 10


def make_keys(*tracks):
    return [f"{track}.{segment:03d}.npy" for track in tracks for segment in range(2)]


def test_a_split_chooses_the_pieces_of_its_tracks(capsys):
    keys = make_keys("a/1.wav", "a/2.au", "b/3.wav", "b/4.wav", "c/5.wav", "v1.0/one", "v1.0/two")
    parts = {
        "train": {"a/1.wav", "a/2.wav", "gone.wav", "v1.0/one"},
        "valid": {"b/3.wav"},
        "test": {"b/3.au", "b/4.wav", "a/2.mp3", "v1.0/gone"},  # other parts have these
    }

    chosen = split_by_list(keys, parts)

    assert chosen == {
        "train": make_keys("a/1.wav", "a/2.au", "v1.0/one"),
        "valid": make_keys("b/3.wav"),
        "test": make_keys("b/4.wav"),
    }
    assert capsys.readouterr().out == (
        "split: 3 tracks to train on, 1 to validate on, 1 kept for tests, 2 in no part; "
        "4 listed ones have no features: gone.wav, a/2.mp3, b/3.au, v1.0/gone\n"
    )
    with pytest.raises(UserError, match="no track to train on"):
        split_by_list(make_keys("a.wav"), {"train": {"b.wav"}, "valid": {"a.wav"}, "test": set()})


@pytest.mark.slow
def test_train_learns_from_one_part_and_keeps_another(
    tmp_path, archive, script, monkeypatch, eager, capfd
):
    monkeypatch.chdir(tmp_path)
    script["main"](["--source", str(archive), "--folder", "audio", "--tracks_per_genre", "5"])
    preprocess.preprocess_folder("audio", "saved", make_settings(duration=0.05), jobs=1)
    capfd.readouterr()

    flags = ["--saved_data", "saved", "--epochs", "1", "--split", str(SPLIT), "--no-logs"]
    flags += ["--flow_epochs", "0"]
    train.main([*flags, "--conv_filters", "4", "8", "--latent_space_dim", "4"])

    printed = capfd.readouterr().out
    taken = {f"{track}.wav" for track in script["list_tracks"](5)}
    parts = {part: taken & tracks for part, tracks in load_split(SPLIT).items()}
    n_train, n_valid, n_test = (len(parts[part]) for part in ("train", "valid", "test"))
    assert min(n_train, n_valid, n_test) > 0
    assert (
        f"split: {n_train} tracks to train on, {n_valid} to validate on, {n_test} kept for tests"
    ) in printed
    with np.load("model/tracks.npz") as tracks:
        assert {*tracks["tracks"].tolist()} == parts["train"]
    assert load_split("model/split.json") == parts
