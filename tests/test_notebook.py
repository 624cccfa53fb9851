"""The cells of docs/colab.ipynb, run as a notebook does, but for the one that installs."""

import collections
import contextlib
import importlib
import json
import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import soundfile

from helpers import ROOT, compute_eagerly, make_flags, write_tracks

NOTEBOOK = ROOT / "docs" / "colab.ipynb"
SMALL = {  # in place of its parameters
    "REPOSITORY": "",
    "MUSIC": "audio",
    "RECORDING": "audio/0.wav",
    "SECONDS": 1,
    "PREPROCESS": " ".join([*make_flags(hop_length=128), "--jobs 1"]),
    "TRAIN": "--resume --epochs 1 --conv_filters 4 8 --latent_space_dim 5 --no-logs",
}


def read_cells():
    """The sources of the cells with code."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cell(source, names):
    """Run a cell, with a notebook's {names} filled into its lines that are a shell's.

    Scripts run in this process, since each that is started takes seconds to import TensorFlow.
    """

    def run(line):
        python, script, *flags = shlex.split(line.format(**names))
        assert python == "python"
        with compute_eagerly() if script == "train.py" else contextlib.nullcontext():
            importlib.import_module(Path(script).stem).main(flags)

    names["run"] = run
    exec(re.sub(r"^!(.*)$", lambda line: f"run({line[1]!r})", source, flags=re.MULTILINE), names)


@pytest.mark.slow
def test_the_notebook_plays_what_it_makes(tmp_path, monkeypatch, capsys):
    write_tracks(tmp_path / "audio", 4)
    played = []
    display = types.SimpleNamespace(Audio=lambda filename: Path(filename), display=played.append)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(tmp_path)
    parameters, install, *cells = read_cells()
    names = {}
    exec(parameters, names)
    assert {*names} - {"__builtins__"} == {*SMALL} and "pip install" in install

    names |= SMALL
    for cell in cells:
        run_cell(cell, names)

    assert capsys.readouterr().out.count("this is the pretrained one") == 2
    folders = collections.Counter(path.parent.as_posix() for path in played)
    before = {"samples_before/recorded": 1, "samples_before/new": 2}
    pairs = {f"samples/{kind}": 3 for kind in ("original", "generated")}
    assert folders == {**before, **pairs, "samples/recorded": 3 + 1, "samples/new": 2}
    assert all(soundfile.read(path)[0].any() for path in played)


def test_the_notebook_holds_neither_outputs_nor_counts():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert not any(cell.get(name) for name in ("metadata", "outputs", "execution_count"))
