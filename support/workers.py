"""Work spread over processes and machines; what kills one of them costs that piece of work alone.

In:  a function, and the names and values to call it with.
Out: its results, as they are done.

    for name, outcome in process_all(process_file, stamps, jobs=2): ...
"""

import concurrent.futures
import contextlib
import ctypes
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

from support.errors import UserError

DASK_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss)://)?[^/\s]+:\d+")
MALLOC_OPTIONS = {-1: 1 << 28, -3: 1 << 25}  # of glibc: trim and mmap thresholds, bytes
# loky warns of a semaphore if its workers are stopped while they work.
IGNORED_WARNING = "ignore::UserWarning:joblib.externals.loky.backend.resource_tracker"
PARENT_CHECK_S = 0.2  # seconds between a worker's checks whether its run goes on
WATCH_S = 5  # seconds between checks whether a cluster has workers
CONNECT_S = 10  # seconds that a Dask scheduler, and then its workers, may take to answer


@contextlib.contextmanager
def connect_to_dask(address):
    """A client of a Dask cluster, whose workers have this program's modules.

    Raises:
        UserError: dask is not installed, or the scheduler does not answer, has no workers, or ends
            too early.
    """
    if not DASK_ADDRESS.fullmatch(address):
        raise UserError(f"--dask_scheduler must be as in tcp://10.0.0.1:8786, got {address}")
    try:
        import distributed
    except ImportError as error:
        raise UserError(
            "--dask_scheduler needs dask: pip install -r requirements-extra.txt"
        ) from error
    # Whatever matters in its log is raised, too.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"--dask_scheduler {address} does not answer: start `dask scheduler` there"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
        except OSError as error:
            raise UserError(
                f"--dask_scheduler {address} has no workers: start `dask worker {address}` on "
                "each machine"
            ) from error
        upload_modules(client)
        is_done = threading.Event()
        threading.Thread(target=watch_workers, args=(client, is_done), daemon=True).start()
        try:
            yield client
        except concurrent.futures.CancelledError as error:
            raise UserError(
                f"--dask_scheduler {address} is gone: start it again, and the same command goes on"
            ) from error
        finally:
            is_done.set()


def watch_workers(client, is_done):
    """Say when a cluster has lost its last worker: Dask waits for the next one silently."""
    had_workers = True
    with contextlib.suppress(OSError, RuntimeError, concurrent.futures.CancelledError):
        while not is_done.wait(WATCH_S):  # until then, or until the scheduler is gone
            has_workers = bool(client.nthreads())
            if had_workers and not has_workers:
                print("the cluster has no workers left: it waits for one", file=sys.stderr)
            had_workers = has_workers


def upload_modules(client):
    """Give all workers of a Dask cluster, later ones included, this program's modules."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        archive = shutil.make_archive(f"{folder}/support", "zip", root, "support")
        client.upload_file(archive)
    client.upload_file(str(root / "preprocess.py"))


def process_all(function, values, jobs, dask_scheduler=None):
    """Call a function for each name and value, in other processes, with a progress bar.

    Args:
        function: (name, value) to anything; it and the values are pickled.
        values: {name: value}.
        jobs: processes; -1 takes every core, 1 works in this process.
        dask_scheduler: address of a Dask cluster to work on instead, or None.
    Yields:
        (name, result), in no certain order; the result is None for a name whose process died.
    """
    from tqdm import tqdm

    if not values:
        return
    if dask_scheduler is None:
        results = process_here(function, values, jobs)
    else:
        results = process_on_dask(function, values, dask_scheduler)
    with contextlib.closing(results):
        yield from tqdm(results, total=len(values), unit="file", disable=None)


def process_on_dask(function, values, address):
    """The results of process_all() from a Dask cluster."""
    with connect_to_dask(address) as client:
        import distributed

        futures = client.map(function, [*values], [*values.values()], pure=False)
        names, suspects = dict(zip(futures, values, strict=True)), []
        for future in distributed.as_completed(futures, client.loop):
            if isinstance(future.exception(), distributed.KilledWorker):
                suspects.append(names[future])
            else:
                yield names[future], future.result()
        for name in suspects:  # that were being worked on when processes died
            future = client.submit(function, name, values[name], pure=False)
            has_died = isinstance(future.exception(), distributed.KilledWorker)
            yield name, None if has_died else future.result()


def process_here(function, values, jobs):
    """The results of process_all() from processes of this machine."""
    import joblib

    os.environ.setdefault("PYTHONWARNINGS", IGNORED_WARNING)
    # At least two, so that a file that kills its process costs that file alone.
    jobs = max(2, joblib.cpu_count()) if jobs == -1 else jobs
    waiting = dict(values)
    with joblib.parallel_config("loky", initializer=prepare_worker, initargs=(os.getpid(),)):
        while waiting:
            started = []
            try:
                for name, result in run_tasks(make_tasks(function, waiting, started), jobs):
                    del waiting[name]
                    yield name, result
            except concurrent.futures.BrokenExecutor:
                pass  # one of the names that were started is to blame
            for name in [name for name in started if name in waiting]:
                yield name, process_alone(function, name, waiting.pop(name))


def make_tasks(function, values, started):
    """Yield joblib's tasks as it has room for them, and append the name of each to `started`."""
    import joblib

    for name, value in [*values.items()]:
        started.append(name)
        yield joblib.delayed(call_named)(function, name, value)


def call_named(function, name, value):
    return name, function(name, value)


def process_alone(function, name, value):
    """The result for a name that was being worked on when a process died; None if it dies again."""
    try:
        [(_, result)] = run_tasks(make_tasks(function, {name: value}, []), 2)
        return result
    except concurrent.futures.BrokenExecutor:
        return None


def run_tasks(tasks, jobs):
    """Yield the results of joblib's tasks as they are done; an interruption adds no messages."""
    import joblib

    parallel = joblib.Parallel(jobs, return_as="generator_unordered")
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore")  # joblib warns if Ctrl-C or a full disk leaves results
        with delay_interrupts():  # a worker that is starting would answer with a traceback
            results = stack.enter_context(contextlib.closing(parallel(tasks)))
        yield from results


@contextlib.contextmanager
def delay_interrupts():
    """Hold Ctrl-C back; processes and threads that start meanwhile never receive it."""
    if not hasattr(signals, "pthread_sigmask"):  # on Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # starting within would unblock SIGINT (Python 3.11)
    before = signals.pthread_sigmask(signals.SIG_BLOCK, {signals.SIGINT})
    try:
        yield
    finally:
        signals.pthread_sigmask(signals.SIG_SETMASK, before)


def keep_freed_memory():
    """Let glibc keep what is freed for what comes next.

    Else it returns arrays to the system, which clears the next ones page by page: a third of a
    worker's time, and half of an epoch's. Other systems have no mallopt.
    """
    with contextlib.suppress(AttributeError, TypeError):
        for option, value in MALLOC_OPTIONS.items():
            ctypes.CDLL(None).mallopt(option, value)


def prepare_worker(parent):
    """Let this process end soon after its parent, which may be killed, ignore Ctrl-C, and keep
    freed memory."""
    keep_freed_memory()
    signals.signal(signals.SIGINT, signals.SIG_IGN)  # the parent receives it, too

    def watch():
        while os.getppid() == parent:
            time.sleep(PARENT_CHECK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
