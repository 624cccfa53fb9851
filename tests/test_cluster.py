"""Preprocessing on a Dask cluster: a scheduler and two workers on loopback."""

import os
import subprocess
import sys
import time

import pytest

import preprocess
from helpers import (
    ROOT,
    SAMPLE_RATE,
    DeadlyLoader,
    find_free_port,
    make_flags,
    make_music,
    make_pipeline,
    make_settings,
    read_all,
    start_script,
    write_tracks,
)
from support import workers
from support.errors import UserError

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


@pytest.fixture
def cluster(tmp_path):
    """(address, processes of the two workers, a function that starts another one).

    They run in another folder than the program's.
    """
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    address = f"tcp://127.0.0.1:{find_free_port()}"
    processes = []

    def spawn(*command):
        with open(folder / f"{len(processes)}.log", "w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *command],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": ""},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        processes.append(process)

    spawn("scheduler", "--host", address, "--no-dashboard")

    def start_worker():
        spawn("worker", address, "--no-nanny", "--nthreads", "2", "--no-dashboard")

    start_worker()
    start_worker()
    yield address, processes[1:], start_worker
    for process in processes:
        process.kill()
        process.wait()


def count_done(journal):
    """The number of files in a journal, which may not exist yet."""
    return max(0, journal.read_bytes().count(b"\n") - 1) if journal.exists() else 0


@pytest.mark.slow
def test_a_cluster_that_loses_its_workers_one_by_one_ends_as_one_process_does(
    tmp_path, write_audio, cluster
):
    address, processes, start_worker = cluster
    for track in range(120):
        write_audio(f"g{track % 3}/{track}.flac", make_music(1.2, seed=track))
    (tmp_path / "audio" / "notes.txt").write_text("no audio")
    journal = tmp_path / "saved" / "min_max_values" / "tracks.jsonl"
    folders = ("--audio_files_dir", "audio", "--saved_data", "saved")
    flags = (*folders, *make_flags(), "--dask_scheduler", address)

    process = start_script("preprocess.py", *flags, cwd=tmp_path)
    for worker, n_before in zip(processes, (10, 30), strict=True):
        while count_done(journal) < n_before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)
        worker.kill()
    n_done = count_done(journal)
    said = process.stderr.readline()
    start_worker()
    printed, errors = process.communicate(timeout=120)

    assert said == "the cluster has no workers left: it waits for one\n"
    assert process.returncode == 0, errors
    assert errors.splitlines() == ["skipped 'notes.txt': not readable as audio"]
    assert n_done < 120  # both kills fell into the work
    assert printed.startswith("121 files, 480 pieces")
    preprocess.preprocess_folder(tmp_path / "audio", tmp_path / "alone", make_settings(), jobs=1)
    assert read_all(tmp_path / "saved") == read_all(tmp_path / "alone")


@pytest.mark.slow
def test_a_file_that_kills_the_one_worker_costs_that_file_alone(tmp_path, write_audio, monkeypatch):
    # Workers import the tests' modules, and get none from the program.
    monkeypatch.setattr(workers, "upload_modules", lambda client: None)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT)]))
    write_tracks(tmp_path / "audio", 6, duration=0.4)
    write_audio("3-deadly.wav", make_music(0.4))
    pipeline = make_pipeline(DeadlyLoader(SAMPLE_RATE, 0.3, True), tmp_path)

    # Each failure starts another worker. This process works on no file: it is alive.
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        pipeline.dask_scheduler = cluster.scheduler_address
        outcomes = pipeline.preprocess(tmp_path / "audio")

    assert [name for name, outcome in outcomes.items() if outcome.reason] == ["3-deadly.wav"]
    assert "ended the process" in outcomes["3-deadly.wav"].reason
    assert len([*(tmp_path / "spectrograms").glob("*.npy")]) == 6


@pytest.mark.parametrize(
    "address, message",
    [
        ("nonsense", "--dask_scheduler must be as in tcp://10.0.0.1:8786, got nonsense"),
        ("127.0.0.1:{port}", "does not answer: start `dask scheduler` there"),
    ],
)
def test_a_scheduler_that_is_not_there_is_named(
    tmp_path, write_audio, monkeypatch, address, message
):
    write_audio("a.wav", make_music(0.4))
    monkeypatch.setattr(workers, "CONNECT_S", 0.5)
    audio, saved, settings = tmp_path / "audio", tmp_path / "saved", make_settings()
    address = address.format(port=find_free_port())

    with pytest.raises(UserError, match=message):
        preprocess.preprocess_folder(audio, saved, settings, dask_scheduler=address)
