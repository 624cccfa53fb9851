"""Preprocessing on a Dask cluster: a scheduler and two workers on loopback."""

import os
import subprocess
import sys
import time
from pathlib import Path

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
    read_all,
    start_script,
)
from support import workers
from support.errors import UserError

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


@pytest.fixture
def audio(tmp_path, write_audio):
    """A folder of 120 tracks, and a file that is not audio."""
    for track in range(120):
        write_audio(f"g{track % 3}/{track}.flac", make_music(1.2, seed=track))
    (tmp_path / "audio" / "notes.txt").write_text("no audio")
    return tmp_path / "audio"


def start_on_cluster(tmp_path, address):
    """A run that has begun to work on the audio, and the number of files that are done."""
    journal = tmp_path / "saved" / "min_max_values" / "tracks.jsonl"
    folders = ("--audio_files_dir", "audio", "--saved_data", "saved")
    flags = (*folders, *make_flags(), "--dask_scheduler", address)
    process = start_script("preprocess.py", *flags, cwd=tmp_path)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    return process, journal.read_bytes().count(b"\n") - 1


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_ends_as_one_process_does(
    tmp_path, audio, cluster, make_settings
):
    address, (worker, _), _ = cluster

    process, n_before = start_on_cluster(tmp_path, address)
    worker.kill()
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors
    assert errors.splitlines() == ["skipped 'notes.txt': not readable as audio"]
    assert n_before < 120  # the kill fell into the work
    preprocess.preprocess_folder(audio, tmp_path / "alone", make_settings(), jobs=1)
    assert read_all(tmp_path / "saved") == read_all(tmp_path / "alone")


@pytest.mark.slow
def test_a_cluster_that_loses_all_workers_says_so_and_waits_for_one(tmp_path, audio, cluster):
    address, processes, start_worker = cluster

    process, _ = start_on_cluster(tmp_path, address)
    for worker in processes:
        worker.kill()
    said = process.stderr.readline()
    start_worker()
    printed, errors = process.communicate(timeout=120)

    assert said == "the cluster has no workers left: it waits for one\n"
    assert process.returncode == 0, errors
    assert printed.startswith("121 files, 480 pieces")


@pytest.fixture
def make_local_cluster(monkeypatch):
    """Makes a cluster whose workers import the tests' modules, and get none from the program."""
    monkeypatch.setattr(workers, "upload_modules", lambda client: None)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT)]))

    def make(n_workers):
        return distributed.LocalCluster(n_workers, threads_per_worker=1, dashboard_address=None)

    return make


@pytest.mark.slow
def test_a_file_that_kills_workers_costs_that_file_alone(tmp_path, write_audio, make_local_cluster):
    for track in range(6):
        write_audio(f"{track}.wav", make_music(0.4, seed=track))
    write_audio("3-deadly.wav", make_music(0.4))
    pipeline = make_pipeline(DeadlyLoader(SAMPLE_RATE, 0.3, True), tmp_path)

    with make_local_cluster(2) as cluster:
        pipeline.dask_scheduler = cluster.scheduler_address
        outcomes = pipeline.preprocess(tmp_path / "audio")

    assert [name for name, outcome in outcomes.items() if outcome.reason] == ["3-deadly.wav"]
    assert "ended the process" in outcomes["3-deadly.wav"].reason
    assert len([*(tmp_path / "spectrograms").glob("*.npy")]) == 6


class NotingLoader(preprocess.Loader):
    """A Loader that notes the process that it works in."""

    def load_pieces(self, file_path, remarks=None):
        Path(file_path).with_suffix(".pid").write_text(str(os.getpid()))
        return super().load_pieces(file_path, remarks)


@pytest.mark.slow
def test_a_cluster_of_one_thread_does_the_work_itself(tmp_path, write_audio, make_local_cluster):
    write_audio("a.wav", make_music(0.4))
    pipeline = make_pipeline(NotingLoader(SAMPLE_RATE, 0.3, True), tmp_path)

    with make_local_cluster(1) as cluster:
        pipeline.dask_scheduler = cluster.scheduler_address
        pipeline.preprocess(tmp_path / "audio")

    assert int((tmp_path / "audio" / "a.pid").read_text()) != os.getpid()


@pytest.mark.parametrize(
    "address, message",
    [
        ("nonsense", "--dask_scheduler must be as in tcp://10.0.0.1:8786, got nonsense"),
        ("127.0.0.1:{port}", "does not answer: start `dask scheduler` there"),
    ],
)
def test_a_scheduler_that_is_not_there_is_named(
    tmp_path, write_audio, make_settings, monkeypatch, address, message
):
    write_audio("a.wav", make_music(0.4))
    monkeypatch.setattr(workers, "CONNECT_S", 0.5)
    audio, saved, settings = tmp_path / "audio", tmp_path / "saved", make_settings()
    address = address.format(port=find_free_port())

    with pytest.raises(UserError, match=message):
        preprocess.preprocess_folder(audio, saved, settings, dask_scheduler=address)
