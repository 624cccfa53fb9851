"""Preprocessing on a Dask cluster: a scheduler and two workers on loopback."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SAMPLE_RATE, make_music
from test_faults import DeadlyLoader, read_all, run, start

import preprocess
from support import workers

pytest.importorskip("distributed")


def find_free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


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
            processes.append(subprocess.Popen(
                [sys.executable, "-m", "dask", *command], cwd=folder, stdout=log, stderr=log,
                env={**os.environ, "PYTHONPATH": ""}, start_new_session=True,
            ))  # fmt: skip

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
    """A folder of 120 tracks, and a file that is no audio."""
    for track in range(120):
        write_audio(f"g{track % 3}/{track}.flac", make_music(1.2, seed=track))
    (tmp_path / "audio" / "notes.txt").write_text("no audio")
    return tmp_path / "audio"


def start_on_cluster(tmp_path, address):
    """A run that works on the audio, and the number of files that are done."""
    journal = tmp_path / "saved" / "min_max_values" / "tracks.jsonl"
    process = start(Path("audio"), Path("saved"), "--dask_scheduler", address, cwd=tmp_path)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 10:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    return process, journal.read_bytes().count(b"\n") - 1


def test_a_cluster_that_loses_a_worker_ends_as_one_process_does(tmp_path, audio, cluster):
    address, (worker, _), _ = cluster

    process, n_before = start_on_cluster(tmp_path, address)
    worker.kill()
    _, errors = process.communicate(timeout=120)

    assert process.returncode == 0, errors
    assert errors.splitlines() == [
        "skipped 'notes.txt': not readable as audio (Format not recognised)"
    ]
    assert n_before < 120  # the kill fell into the work
    _, errors, status = run(audio, tmp_path / "alone", "--jobs", "1")
    assert status == 0, errors
    assert read_all(tmp_path / "saved") == read_all(tmp_path / "alone")


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


def test_a_file_that_kills_workers_costs_that_file_alone(tmp_path, write_audio, monkeypatch):
    distributed = pytest.importorskip("distributed")
    for track in range(6):
        write_audio(f"{track}.wav", make_music(0.4, seed=track))
    write_audio("3-deadly.wav", make_music(0.4))
    monkeypatch.setattr(workers, "upload_modules", lambda client: None)
    pipeline = preprocess.PreprocessingPipeline(
        DeadlyLoader(SAMPLE_RATE, 0.3, True), preprocess.Padder(),
        preprocess.LogSpectrogramExtractor(256, 64), preprocess.MinMaxNormaliser(0, 1),
        preprocess.Saver(tmp_path / "spectrograms", tmp_path / "values"),
    )  # fmt: skip

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [*Path(__file__).parents][:2])))
    with distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=None) as here:
        pipeline.dask_scheduler = here.scheduler_address
        tracks = pipeline.preprocess(tmp_path / "audio")

    assert [name for name, track in tracks.items() if track.reason] == ["3-deadly.wav"]
    assert "ended the process" in tracks["3-deadly.wav"].reason
    assert len([*(tmp_path / "spectrograms").glob("*.npy")]) == 6


class NotingLoader(preprocess.Loader):
    """A Loader that notes the process that it works in."""

    def load_pieces(self, file_path):
        Path(file_path).with_suffix(".pid").write_text(str(os.getpid()))
        return super().load_pieces(file_path)


def test_a_cluster_of_one_thread_does_the_work_itself(tmp_path, write_audio, monkeypatch):
    distributed = pytest.importorskip("distributed")
    write_audio("a.wav", make_music(0.4))
    monkeypatch.setattr(workers, "upload_modules", lambda client: None)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, [*Path(__file__).parents][:2])))
    pipeline = preprocess.PreprocessingPipeline(
        NotingLoader(SAMPLE_RATE, 0.3, True), preprocess.Padder(),
        preprocess.LogSpectrogramExtractor(256, 64), preprocess.MinMaxNormaliser(0, 1),
        preprocess.Saver(tmp_path / "spectrograms", tmp_path / "values"),
    )  # fmt: skip

    with distributed.LocalCluster(1, threads_per_worker=1, dashboard_address=None) as here:
        pipeline.dask_scheduler = here.scheduler_address
        pipeline.preprocess(tmp_path / "audio")

    assert int((tmp_path / "audio" / "a.pid").read_text()) != os.getpid()


@pytest.mark.parametrize(
    "address, message",
    [
        ("nonsense", "--dask_scheduler must be as in tcp://10.0.0.1:8786, got nonsense"),
        ("127.0.0.1:{port}", "does not answer: start `dask scheduler` there"),
    ],
)
def test_a_scheduler_that_is_not_there_is_named(tmp_path, write_audio, make_settings, monkeypatch,
                                                address, message):  # fmt: skip
    write_audio("a.wav", make_music(0.4))
    monkeypatch.setattr(workers, "CONNECT_S", 0.5)

    with pytest.raises(ValueError, match=message):
        preprocess.run(
            tmp_path / "audio", tmp_path / "saved", make_settings(),
            dask_scheduler=address.format(port=find_free_port()),
        )  # fmt: skip
