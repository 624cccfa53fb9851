"""What the app's tab *Train* runs: preprocess.py and train.py, as in a terminal.

In:  the flags of these scripts.
Out: what they print, as it comes; the losses in it; what to expect of so much music.

    script.start("train.py", ["--resume"])
    for text in script.follow(): ...
"""

import math
import re
import shlex
import signal as signals
import subprocess
import sys
import threading
from pathlib import Path

from support.errors import UserError
from support.files import make_figure, write_atomically

ROOT = Path(__file__).resolve().parent.parent
END_S = 5.0  # that a script may take to end after its last line
POLL_S = 1.0  # seconds between looks at what was printed
PROSPECTS = (  # (below these hours of audio, how long training takes on two cores, what to expect)
    (0.25, "about 5 minutes", "each new piece is like one of the tracks"),
    (4.0, "about half an hour", "new pieces are like several of the tracks"),
    (math.inf, "about an hour and a half", "new pieces are in the tracks' styles"),
)
HOURS = re.compile(r"pieces, ([\d.]+) h of audio")
EPOCH = re.compile(r"epoch (\d+)/")
LOSS = re.compile(r"(training|validation) loss ([\d.]+)")


class Script:
    """One script of the project at a time; what they print is kept."""

    def __init__(self):
        self.lines = []
        self._process = None
        self._reader = threading.Thread()  # lives as long as the script

    def start(self, name, flags, then=None):
        """Start a script; a function may be called when it has ended well.

        Raises:
            UserError: one is running.
        """
        if self._reader.ident:
            self._reader.join(END_S)
        if self._reader.is_alive():
            raise UserError("a script is running here: wait for its end, or stop it")
        self.lines.append(f"$ {shlex.join(['python', name, *flags])}\n")
        how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, str(ROOT / name), *flags]
        self._process = subprocess.Popen(command, errors="replace", **how)
        self._reader = threading.Thread(target=self._read, args=[then], daemon=True)
        self._reader.start()

    def _read(self, then):
        self.lines.extend(self._process.stdout)
        if self._process.wait() == 0 and then:
            then()

    def follow(self):
        """Yield all that was printed, now and whenever it is more, until the script ends."""
        n_seen, is_running = None, True
        while is_running:
            is_running = self._reader.is_alive()
            if n_seen != len(self.lines):
                n_seen = len(self.lines)
                yield "".join(self.lines[:n_seen])
            if is_running:
                self._reader.join(POLL_S)

    def stop(self):
        """Interrupt it, as Ctrl-C does: it says itself how to go on."""
        if self._reader.is_alive():
            self._process.send_signal(signals.SIGINT)


def find_music(folder, uploads, saved_data):
    """The folder of audio that a user names, or that of what was uploaded.

    Args:
        folder: text, may be empty.
        uploads: paths, which the browser sent, or None; they are copied beside saved_data to stay.
    """
    if bool(folder) == bool(uploads):
        raise UserError("name a folder of music, or upload some")
    kept = Path(f"{Path(saved_data).expanduser()}_uploads")
    for path in uploads or ():
        write_atomically(kept / Path(path).name, Path(path).read_bytes())
    return folder or str(kept)


def describe_prospects(text):
    """What to expect of the music that preprocess.py tells of, or "" if it tells of none."""
    found = HOURS.findall(text)
    if not found:
        return ""
    _, time, what = next(row for row in PROSPECTS if float(found[-1]) < row[0])
    return f"{found[-1]} h of music: training takes {time} on two cores, and {what}."


def plot_losses(text):
    """A figure of the losses in train.py's output, or None if there are none yet: those of what it
    trains last, the autoencoder, then what draws detail, then what draws new music."""
    losses = {}  # {kind: {epoch: loss}}
    for line in text.splitlines():
        found = EPOCH.match(line)
        if found and found[1] == "0":
            losses = {}
        for kind, loss in LOSS.findall(line) if found else ():
            losses.setdefault(kind, {})[int(found[1])] = float(loss)
    if not losses:
        return None
    figure = make_figure(8, 3)
    axes = figure.add_subplot(xlabel="epoch", ylabel="loss")
    for kind, values in losses.items():
        axes.plot([*values], [*values.values()], marker=".", label=kind)
    axes.legend()
    return figure
