"""How the scripts meet the system they run on: streams, Keras's settings, memory, numba's cache."""

import os
import subprocess
import sys

import numba
import pytest

import generate
import preprocess
import train
from helpers import ROOT, run_script
from support.command_line import number
from support.command_line import run_script as run_main
from support.griffin_lim import compiled

SAY = "import sys; sys.path.insert(0, {root!r}); from support.command_line import run_script; "


def run_python(code, *, redirect="", options="", **environment):
    """Run code that may call run_script in a fresh process of a shell."""
    code = SAY.format(root=str(ROOT)) + code
    return subprocess.run(
        f'exec "$PYTHON" {options} -c "$CODE" {redirect}',
        shell=True,
        env={**os.environ, "PYTHON": sys.executable, "CODE": code, **environment},
        capture_output=True,
        text=True,
    )


def test_a_name_that_stdout_cannot_write_is_escaped():
    result = run_python("run_script(lambda: print('夏'))", PYTHONIOENCODING="ascii")

    assert (result.returncode, result.stdout) == (0, "\\u590f\n")


@pytest.mark.parametrize("script", [preprocess, train, generate])
def test_help_is_there_without_docstrings(monkeypatch, script):
    monkeypatch.setattr(script, "__doc__", None)  # as under python -OO

    assert "--saved_data" in script.get_parser().format_help()


@pytest.mark.parametrize("text", ["inf", "nan", "-inf"])
def test_numbers_are_finite(text):
    with pytest.raises(Exception, match="must be finite"):
        number(float, 0)(text)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 TiB"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),  # of JAX
    ],
)
def test_out_of_memory_is_one_line_with_a_remedy(error):
    def main():
        raise error

    with pytest.raises(SystemExit, match="takes more memory than there is: lower --batch_size"):
        run_main(main, if_out_of_memory="lower --batch_size")


def test_tensorflow_out_of_memory_is_recognised():
    import tensorflow as tf

    with (
        tf.device("CPU"),
        pytest.raises(SystemExit, match="takes more memory than there is: ask for less"),
    ):
        run_main(lambda: tf.zeros((1 << 24, 1 << 24)))


def test_a_backend_that_is_not_supported_is_one_line(tmp_path):
    result = run_script("train.py", cwd=tmp_path, KERAS_BACKEND="numpy")

    assert result.returncode == 1
    assert result.stderr.count("\n") == 1 and "KERAS_BACKEND" in result.stderr


def test_kernels_compile_where_nothing_can_be_cached(monkeypatch):
    def refuse(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return real_njit(**options)

    real_njit = numba.njit
    with monkeypatch.context() as patch:
        patch.setattr(numba, "njit", refuse)
        function = compiled(lambda x: x + 1)

    assert function(1) == 2


@pytest.mark.parametrize("text, message", [("", "must not be empty"), ("~nobody_here/a", "home")])
def test_a_folder_that_a_shell_left_empty_or_of_no_user_is_refused(capsys, text, message):
    with pytest.raises(SystemExit):
        preprocess.get_parser().parse_args(["--audio_files_dir", text])

    assert message in capsys.readouterr().err
