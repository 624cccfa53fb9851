"""Spreading work over processes and machines, so that faults of theirs are only theirs.

In:  joblib's tasks.
Out: their results, as they are done.

    with connect(dask_scheduler=None):
        for result in spread(tasks, jobs=2): ...
"""

import concurrent.futures
import contextlib
import logging
import os
import re
import shutil
import signal as signals
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

DASK_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss)://)?[^/\s]+:\d+")
# glibc gives freed arrays back to the system, which clears the next ones page by page: a third of
# a worker's time. Other systems do not read these.
WORKER_ENVIRONMENT = {  # bytes
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 25),
}
PARENT_CHECK_S = 0.2  # seconds between a worker's looks at whether its run goes on
WATCH_S = 5  # seconds between looks at whether a cluster has workers
CONNECT_S = 10  # seconds that a Dask scheduler, and then its workers, may take to answer


@contextlib.contextmanager
def connect(dask_scheduler):
    """Let joblib spread its tasks over a Dask cluster; over this machine where it is None.

    Raises:
        ValueError: dask is not installed, or the scheduler does not answer, has no workers, or
            ends while it is needed.
    """
    import joblib

    if dask_scheduler is not None:
        with connect_to_dask(dask_scheduler):
            yield
        return
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with joblib.parallel_config("loky", initializer=follow_parent, initargs=(os.getpid(),)):
        yield


@contextlib.contextmanager
def connect_to_dask(address):
    import joblib

    if not DASK_ADDRESS.fullmatch(address):
        raise ValueError(f"--dask_scheduler must be as in tcp://10.0.0.1:8786, got {address}")
    try:
        import distributed
    except ImportError as error:
        raise ValueError(
            "--dask_scheduler needs dask: pip install -r requirements-extra.txt"
        ) from error
    # What matters of its log is raised, too.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"--dask_scheduler {address} does not answer: start `dask scheduler` there"
        ) from error
    with client, joblib.parallel_config(make_dask_backend(client)):
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except OSError as error:
            raise ValueError(
                f"--dask_scheduler {address} has no workers: start `dask worker {address}` on "
                "each machine"
            ) from error
        upload_modules(client)
        is_done = threading.Event()
        threading.Thread(target=watch_workers, args=(client, is_done), daemon=True).start()
        try:
            yield
        except concurrent.futures.CancelledError as error:
            raise ValueError(
                f"--dask_scheduler {address} is gone: start it again, and the same command goes on"
            ) from error
        finally:
            is_done.set()


def watch_workers(client, is_done):
    """Say when a cluster has lost its last worker: Dask waits for the next one in silence."""
    had_workers = True
    with contextlib.suppress(OSError, RuntimeError, concurrent.futures.CancelledError):
        while not is_done.wait(WATCH_S):  # until then, or until the scheduler is gone
            has_workers = bool(client.nthreads())
            if had_workers and not has_workers:
                print("the cluster has no workers left: it waits for one", file=sys.stderr)
            had_workers = has_workers


def make_dask_backend(client):
    """joblib's backend for Dask without two faults of joblib 1.6.

    It waits for ever for a task whose workers died one after the other; and while the cluster
    has a single thread, it does the work in this process instead.
    """
    from joblib._dask import DaskDistributedBackend

    class ReportingBackend(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs):
            return max(2, super().effective_n_jobs(n_jobs))

        def submit(self, func, callback=None):
            future = super().submit(func, callback)
            future.add_done_callback(
                lambda done: callback(done.exception()) if done.exception() else None
            )
            return future

    return ReportingBackend(client=client)


def upload_modules(client):
    """Give the workers of a Dask cluster, those to come included, this program's modules."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        archive = shutil.make_archive(f"{folder}/support", "zip", root, "support")
        client.upload_file(archive)
    client.upload_file(str(root / "preprocess.py"))


def spread(tasks, jobs):
    """Yield the results of joblib tasks as they are done, whatever interrupts them, in silence."""
    import joblib

    parallel = joblib.Parallel(jobs, return_as="generator_unordered")
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")  # joblib warns where Ctrl-C or a full disk leaves results
        with delay_interrupts():  # which workers that start would answer with a traceback
            results = stack.enter_context(contextlib.closing(parallel(tasks)))
        yield from results


@contextlib.contextmanager
def delay_interrupts():
    """Let Ctrl-C wait; it never reaches processes and threads that start meanwhile."""
    if not hasattr(signals, "pthread_sigmask"):  # on Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # it would start within, and end the waiting (Python 3.11)
    before = signals.pthread_sigmask(signals.SIG_BLOCK, {signals.SIGINT})
    try:
        yield
    finally:
        signals.pthread_sigmask(signals.SIG_SETMASK, before)


def follow_parent(parent):
    """End this process soon after its parent, which may have been killed, and not before."""
    signals.signal(signals.SIGINT, signals.SIG_IGN)  # Ctrl-C reaches the parent, too

    def watch():
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def list_deaths():
    """The exceptions that tell that a worker process died."""
    distributed = sys.modules.get("distributed")
    killed = [distributed.KilledWorker] if distributed else []
    return (concurrent.futures.BrokenExecutor, *killed)
