"""The three scripts on an idle machine, and beside a busy loop on each of its cores.

In:  the demo set, rendered if it is not there yet.
Out: a table on stdout and as CSV: seconds of each, and how many times as long it takes when busy.

    python -m benchmarks.busy
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from preprocess import AUDIO_FILES_DIR, render_demo
from support.command_line import make_parser, number, run_script
from support.files import write_csv

ROOT = Path(__file__).resolve().parent.parent
LOOP = "while True: pass"
COLUMNS = ("command", "idle_s", "busy_s", "ratio")


def make_commands(folder):
    """The scripts and their flags, in the order that they need each other."""
    saved, model = ["--saved_data", f"{folder}/saved"], ["--model", f"{folder}/model"]
    return [
        ["preprocess.py", "--audio_files_dir", str(ROOT / AUDIO_FILES_DIR), *saved],
        ["train.py", *saved, *model, "--epochs", "2", "--no-logs"],
        ["generate.py", *saved, *model, "--samples", f"{folder}/samples", "sample", "100"],
    ]


@contextlib.contextmanager
def keep_busy():
    """Something else to do for each core."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def time_commands():
    """Seconds of each command, in a new folder."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for script, *flags in make_commands(folder):
            started = time.perf_counter()
            command = [sys.executable, str(ROOT / script), *flags]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
    return seconds


def get_parser():
    parser = make_parser(__doc__)
    help_text = "idle and busy runs take turns; the best of each counts"
    parser.add_argument("--rounds", type=number(int, 1), default=2, help=help_text)
    parser.add_argument("--output", default="busy.csv", help="table to write")
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    render_demo()
    idle, busy = [], []
    for _ in range(options.rounds):
        idle.append(time_commands())
        with keep_busy():
            busy.append(time_commands())
    rows = []
    commands = [" ".join(command[:1] + command[-2:]) for command in make_commands("")]
    best = [[min(seconds) for seconds in zip(*runs, strict=True)] for runs in (idle, busy)]
    for command, idle_s, busy_s in zip(commands, *best, strict=True):
        rows.append((command, idle_s, busy_s, busy_s / idle_s))
        print(f"{command:<40}{idle_s:>8.1f} s idle{busy_s:>8.1f} s busy{busy_s / idle_s:>7.2f}")
    write_csv(options.output, COLUMNS, rows)


if __name__ == "__main__":
    run_script(main)
