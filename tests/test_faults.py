"""Preprocessing that is killed, interrupted, out of room, or begun again over changed audio."""

import contextlib
import errno
import fcntl
import os
import random
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

import preprocess
from helpers import (
    SAMPLE_RATE,
    TIMEOUT_S,
    DeadlyLoader,
    load_ranges,
    make_flags,
    make_music,
    make_pipeline,
    make_settings,
    make_tone,
    mount,
    read_all,
    start_script,
    write_tracks,
)
from support import audio as audio_files
from support import dataset, files, journal
from support.errors import TemporaryError, UserError

N_TRACKS = 40
N_FILES = N_TRACKS + 2
N_PIECES = 4 * N_TRACKS


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """A folder with tracks of four pieces, a file that is not audio, and one that ends in NaN."""
    folder = tmp_path_factory.mktemp("tracks") / "audio"
    for track in range(N_TRACKS):
        path = folder / f"g{track % 3}" / f"{track}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_music(1.2, seed=track), SAMPLE_RATE)
    (folder / "notes.txt").write_text("no audio")
    signal = np.append(make_music(1.2), np.nan)
    soundfile.write(folder / "g1" / "nan.wav", signal, SAMPLE_RATE, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def unbroken(audio):
    """What a run that nothing disturbs writes, {path: bytes}, and how many seconds it takes."""
    saved = audio.parent / "unbroken"
    started = time.monotonic()
    printed, errors, status = run(audio, saved)
    assert status == 0, errors
    assert printed.startswith(f"{N_FILES} files, {N_PIECES} pieces"), printed
    return read_written(saved), time.monotonic() - started


def start(audio, saved, *flags):
    folders = ("--audio_files_dir", audio, "--saved_data", saved)
    return start_script("preprocess.py", *folders, *make_flags(), *flags, cwd=saved.parent)


def run(audio, saved, *flags):
    """(stdout, stderr, exit status) of a run."""
    process = start(audio, saved, *flags)
    return *process.communicate(timeout=TIMEOUT_S), process.returncode


def read_written(saved):
    """What a run wrote, {path: bytes}, but for source.json: it tells the way to the audio."""
    return {name: content for name, content in read_all(saved).items() if name != "source.json"}


def count_lines(saved):
    """How long the journal is."""
    path = saved / "min_max_values" / "tracks.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill(process, with_workers):
    """Send SIGKILL to a run, alone or with its workers."""
    with contextlib.suppress(ProcessLookupError):
        if with_workers:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.communicate(timeout=30)  # until the workers have noticed it, too


def assert_usable(saved, whole):
    """What an interrupted run left are whole files, and a pickle with the right ranges."""
    for name, content in read_all(saved).items():
        if name.endswith(".npy"):
            assert content == whole[name], name
    path = dataset.Features.of(saved).min_max_path
    if path.exists():
        expected = load_ranges(saved.parent / "whole")
        assert dataset.load_min_max_values(path).items() <= expected.items()


@pytest.mark.slow
@pytest.mark.parametrize("jobs, n_kills", [(1, 3), (2, 3)])
def test_a_run_killed_at_any_moment_ends_as_if_unbroken(tmp_path, audio, unbroken, jobs, n_kills):
    whole, seconds = unbroken
    shutil.copytree(audio.parent / "unbroken", tmp_path / "whole")
    saved = tmp_path / "saved"
    rng = random.Random(jobs)

    # As soon as the journal has so many lines; then anywhere, starting and ending included.
    lines = [1, *[rng.randrange(2, 35) for _ in range(n_kills // 2)], *[0] * (n_kills // 2)]
    n_partial = 0
    for kill_number, n_lines in enumerate(lines):
        process = start(audio, saved, "--jobs", jobs)
        while process.poll() is None and count_lines(saved) < n_lines:
            time.sleep(0.002)
        if n_lines == 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, seconds))
        kill(process, with_workers=kill_number % 2)
        assert_usable(saved, whole)
        n_partial += 0 < len([*saved.rglob("*.npy")]) < N_PIECES
    preprocess.preprocess_folder(audio, saved, make_settings(), jobs=1)

    assert read_written(saved) == whole
    assert n_partial > 0  # else no kill fell into the work


@pytest.mark.slow
@pytest.mark.parametrize("n_lines", [1, 20])  # the workers start, midway
def test_an_interrupted_run_ends_with_one_line_and_goes_on(
    tmp_path, audio, unbroken, capsys, n_lines
):
    saved = tmp_path / "saved"
    ranges_path = dataset.Features.of(saved).min_max_path
    process = start(audio, saved, "--jobs", "2")
    while count_lines(saved) < n_lines or not ranges_path.exists():
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers, too
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert errors.splitlines() == [
        "interrupted: what is done stays, and the same command goes on from there"
    ]
    n_before = len(dataset.load_min_max_values(ranges_path))
    preprocess.preprocess_folder(audio, saved, make_settings(), jobs=1)
    assert 3 * (n_lines - 2) <= n_before < N_PIECES
    assert ("files are done already" in capsys.readouterr().out) == (n_before > 0)
    assert read_written(saved) == unbroken[0]


@pytest.mark.slow
def test_what_ends_a_run_between_two_results_is_all_that_is_said(tmp_path, audio, monkeypatch):
    add = journal.Journal.add

    def end(self, name, outcome):
        if count_lines(tmp_path) > 10:
            raise OSError
        add(self, name, outcome)

    monkeypatch.setattr(journal.Journal, "add", end)
    pipeline = make_pipeline(preprocess.Loader(SAMPLE_RATE, 0.3, True), tmp_path, jobs=2)
    with warnings.catch_warnings(record=True) as said, pytest.raises(OSError):
        pipeline.preprocess(audio)

    assert [*map(str, said)] == []
    assert 0 < len(load_ranges(tmp_path)) < N_PIECES


@pytest.fixture
def small(tmp_path, write_audio):
    """(audio folder, function that preprocesses it and gives what was written)."""
    for track in range(3):
        write_audio(f"{track}.wav", make_music(0.7, seed=track))

    def process(name="saved", **keywords):
        keywords = {"jobs": 1, **keywords}
        preprocess.preprocess_folder(
            tmp_path / "audio", tmp_path / name, make_settings(), **keywords
        )
        return read_all(tmp_path / name)

    return tmp_path / "audio", process


def test_changed_and_new_audio_is_noticed(small, write_audio):
    _, process = small
    process()
    write_audio("0.wav", make_tone(330, 0.3))  # one piece fewer
    write_audio("deep/3.wav", make_tone(660, 0.3))

    again = process()

    assert again == process("fresh")
    assert sorted(name for name in again if name.endswith(".npy")) == [
        "spectrograms/0.wav.000.npy",
        "spectrograms/1.wav.000.npy",
        "spectrograms/1.wav.001.npy",
        "spectrograms/2.wav.000.npy",
        "spectrograms/2.wav.001.npy",
        "spectrograms/deep/3.wav.000.npy",
    ]


def test_features_of_tracks_that_are_gone_stay_but_for_force(small, write_audio, tmp_path, capsys):
    audio, process = small
    write_audio("folk/3.wav", make_tone(660, 0.3))
    (audio / "cover.jpg").write_bytes(b"a picture")
    before = process()
    for name in ("0.wav", "1.wav", "folk/3.wav", "cover.jpg"):
        (audio / name).unlink()

    again = process()

    assert "note: 3 of 4 tracks are gone from" in capsys.readouterr().err
    assert again.pop("skipped.csv") != before.pop("skipped.csv")  # it names no picture any more
    journals = [files.pop("min_max_values/tracks.jsonl") for files in (again, before)]
    assert journals[0] != journals[1] and again == before

    forced = process(force=True)

    assert {name for name in forced if name.endswith(".npy")} == {
        "spectrograms/2.wav.000.npy",
        "spectrograms/2.wav.001.npy",
    }
    assert {dataset.get_track(key) for key in load_ranges(tmp_path / "saved")} == {"2.wav"}
    assert not (tmp_path / "saved" / "spectrograms" / "folk").exists()


def test_files_of_others_among_the_features_stay(small, tmp_path):
    audio, process = small
    process()
    folder = tmp_path / "saved" / "spectrograms"
    (folder / "empty").mkdir()
    (folder / "mine.npy").write_bytes(b"mine")
    (audio / "1.wav").unlink()

    process()

    assert (folder / "empty").is_dir()
    assert (folder / "mine.npy").read_bytes() == b"mine"


def test_a_renamed_project_has_nothing_to_do(small, tmp_path, monkeypatch, capsys):
    audio, _ = small
    project = tmp_path / "project"
    project.mkdir()
    audio.rename(project / "audio")
    preprocess.preprocess_folder(project / "audio", project / "saved", make_settings(), jobs=1)
    before = read_all(project / "saved")
    renamed = project.rename(tmp_path / "renamed")
    capsys.readouterr()

    def refuse(loader, path, remarks):
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(preprocess.Loader, "load_pieces", refuse)
    preprocess.preprocess_folder(renamed / "audio", renamed / "saved", make_settings(), jobs=1)

    assert "3 files are done already, 0 are new or changed" in capsys.readouterr().out
    assert read_all(renamed / "saved") == before


def test_what_the_program_wrote_below_the_audio_is_not_taken_for_audio(
    small, write_audio, tmp_path
):
    _, process = small
    whole = process()
    process("audio/saved")
    before = process("audio/saved")

    (tmp_path / "audio" / "saved").rename(tmp_path / "elsewhere")
    assert process("audio/saved") == before
    assert b"saved" not in before["skipped.csv"]
    write_audio("samples/generated/0.wav.000.wav", make_tone(330, 0.3))
    (tmp_path / "audio" / "samples" / files.LOCK).touch()
    assert process("elsewhere again") == whole


def test_what_a_run_left_gone_cut_or_half_written_is_made_whole(small, tmp_path):
    _, process = small
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / ".DS_Store").touch()  # as systems leave it: no file of another
    before = process()
    (tmp_path / "saved" / "spectrograms" / "1.wav.001.npy").unlink()
    path = tmp_path / "saved" / "spectrograms" / "2.wav.000.npy"
    path.write_bytes(path.read_bytes()[:-1])
    for folder in ("", "min_max_values", "spectrograms"):
        (tmp_path / "saved" / folder / ".0123456789abcdef.tmp").write_bytes(b"half of a file")

    assert process() == before


def test_a_journal_that_ends_anywhere_is_gone_on_from(small, tmp_path):
    _, process = small
    before = process()
    path = tmp_path / "saved" / "min_max_values" / "tracks.jsonl"
    whole = path.read_bytes()

    for length in range(0, len(whole), 83):
        path.write_bytes(whole[:length])
        (tmp_path / "saved" / "spectrograms" / "2.wav.000.npy").unlink()
        assert process() == before
    not_an_outcome = whole + b'["x", [1, 2], 3, [4], [5], 6]\n'
    for garbage in (b"\0" * 300, b"[1]\n" * 9, b"[" * 100_000, not_an_outcome):
        path.write_bytes(garbage)
        assert process() == before


def test_force_does_all_again(small, tmp_path):
    _, process = small
    before = process()
    path = tmp_path / "saved" / "spectrograms" / "1.wav.001.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the same length: nothing tells that it is another
    path.write_bytes(data)

    assert process() != before
    assert process(force=True) == before


def test_a_piece_never_lies_beside_the_range_of_another(small, write_audio, monkeypatch, tmp_path):
    _, process = small
    process()
    write_audio("1.wav", make_tone(330, 0.7, level=0.01))

    def die(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess, "process_all", die)
    with pytest.raises(KeyboardInterrupt):
        process()

    values = load_ranges(tmp_path / "saved")
    keys = {key for key in values if key.startswith("1.wav")}
    assert not keys and len(values) == 4
    assert not [*(tmp_path / "saved").rglob("1.wav*.npy")]


def test_features_never_lie_beside_settings_of_others(small, tmp_path, monkeypatch):
    audio, process = small
    process()

    def die(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess.PreprocessingPipeline, "preprocess", die)
    with pytest.raises(KeyboardInterrupt):
        preprocess.preprocess_folder(
            audio, tmp_path / "saved", make_settings(frame_size=512), force=True
        )

    assert not dataset.Features.of(tmp_path / "saved").min_max_path.exists()


def test_the_second_of_two_runs_at_once_stops(small, tmp_path):
    audio, process = small
    before = process()
    with files.lock(tmp_path / "saved"):
        _, errors, status = run(audio, tmp_path / "saved")

    assert status == 1 and len(errors.splitlines()) == 1
    assert "another run is writing" in errors
    assert read_all(tmp_path / "saved") == before
    assert process() == before  # the lock is gone


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_is_said_and_used(small, monkeypatch, capsys, error):
    def refuse(*_):
        raise OSError(error, os.strerror(error))

    _, process = small
    monkeypatch.setattr(fcntl, "flock", refuse)
    before = process()

    assert process() == before
    assert capsys.readouterr().err.count("has no locks: keep two runs out of it yourself") == 2


def test_features_of_a_track_that_turns_out_bad_do_not_appear(small, monkeypatch):
    _, process = small
    load_pieces = preprocess.Loader.load_pieces

    def break_off(self, path, remarks=None):
        yield next(load_pieces(self, path, remarks))
        if path.name == "1.wav":
            raise UserError("holds samples that are not finite")

    monkeypatch.setattr(preprocess.Loader, "load_pieces", break_off)
    written = process()

    names = [name for name in written if name.endswith(".npy")]
    assert names == ["spectrograms/0.wav.000.npy", "spectrograms/2.wav.000.npy"]
    assert b"1.wav,holds samples" in written["skipped.csv"]


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path, audio, unbroken):
    whole, _ = unbroken
    with mount(tmp_path / "disk", "size=3m") as remount:
        saved = tmp_path / "disk" / "saved"

        _, errors, status = run(audio, saved, "--jobs", "2")

        assert status == 1 and len(errors.splitlines()) == 1, errors
        assert "No space left on device" in errors and "make room there" in errors
        assert len([*saved.rglob("*.npy")]) > 20 and not [*saved.rglob(".*.tmp")]
        for name, content in read_all(saved).items():
            assert not name.endswith(".npy") or content == whole[name]

        remount("size=200m")
        preprocess.preprocess_folder(audio, saved, make_settings(), jobs=1)
        assert read_written(saved) == whole


@pytest.mark.slow
def test_a_read_only_folder_is_one_clear_error(tmp_path, audio, unbroken):
    with mount(tmp_path / "disk", "size=100m") as remount:
        saved = shutil.copytree(audio.parent / "unbroken", tmp_path / "disk" / "saved")
        remount("ro")

        for folder in (saved, saved.parent / "new"):
            _, errors, status = run(audio, folder, "--force")
            assert status == 1 and len(errors.splitlines()) == 1, errors
            assert "Read-only file system" in errors and "name another folder" in errors
        assert read_written(saved) == unbroken[0]


@pytest.mark.slow
def test_a_file_that_kills_its_process_costs_that_file_alone(tmp_path, write_audio):
    write_tracks(tmp_path / "audio", 6, duration=0.4)
    for track in (3, 4):
        write_audio(f"{track}-deadly.wav", make_music(0.4, seed=track))
    pipeline = make_pipeline(DeadlyLoader(SAMPLE_RATE, 0.3, True), tmp_path, jobs=2)

    outcomes = pipeline.preprocess(tmp_path / "audio")

    skipped = {name: outcome.reason for name, outcome in outcomes.items() if outcome.reason}
    assert sorted(skipped) == ["3-deadly.wav", "4-deadly.wav"]
    assert all("ended the process" in reason for reason in skipped.values())
    assert len(outcomes) == 8 and len([*(tmp_path / "spectrograms").glob("*.npy")]) == 6
    assert all(outcomes[name].stamp is None for name in skipped)  # to be tried again


def test_a_folder_that_cannot_be_read_keeps_its_features(small, write_audio, monkeypatch):
    _, process = small
    write_audio("deep/3.wav", make_tone(660, 0.3))
    before = process()
    scandir = os.scandir

    def fail(path):
        if Path(path).name == "deep" and "audio" in str(path):
            raise OSError(5, "Input/output error", str(path))
        return scandir(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", fail)
        during = process()

    names = {name for name in before if name.endswith((".npy", ".pkl"))}
    assert {name: during[name] for name in names} == {name: before[name] for name in names}
    assert b"deep,cannot be opened (Input/output error)" in during["skipped.csv"]
    assert process() == before


def test_trouble_that_may_pass_is_tried_again(small, monkeypatch):
    _, process = small
    whole = process("whole")
    open_regular = audio_files.open_regular

    def fail(path):
        if Path(path).name == "1.wav":
            raise TemporaryError("cannot be opened (Input/output error)")
        return open_regular(path)

    with monkeypatch.context() as patch:
        patch.setattr(audio_files, "open_regular", fail)
        before = process()

    assert b"Input/output error" in before["skipped.csv"]
    assert process() == whole
