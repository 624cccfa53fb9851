"""How the scripts meet the system they run on: streams, Keras's settings, memory, numba's cache."""

import json
import os
import subprocess
import sys

import numba
import numpy as np
import pytest

import preprocess
from helpers import ROOT, make_images, run_script
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


def test_help_is_there_without_docstrings(tmp_path):
    for script in ("preprocess.py", "train.py", "generate.py"):
        result = subprocess.run(
            [sys.executable, "-OO", ROOT / script, "--help"], capture_output=True, text=True
        )
        assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("text", ["inf", "nan", "-inf"])
def test_numbers_are_finite(text):
    with pytest.raises(Exception, match="must be finite"):
        number(float, 0)(text)


class ResourceExhaustedError(Exception):
    """As TensorFlow's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8 TiB"),
        ResourceExhaustedError("OOM when allocating tensor"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),  # of JAX
    ],
)
def test_out_of_memory_is_one_line_with_a_remedy(error):
    def main():
        raise error

    with pytest.raises(SystemExit, match="takes more memory than there is: lower --batch_size"):
        run_main(main, if_out_of_memory="lower --batch_size")


def test_other_errors_keep_their_traceback():
    def main():
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        run_main(main)


def test_tensorflow_out_of_memory_is_recognised():
    code = (
        "\ndef main():\n    import autoencoder\n    import tensorflow as tf\n"
        "    tf.zeros((1 << 24, 1 << 24))\nrun_script(main)"
    )
    result = run_python(code, CUDA_VISIBLE_DEVICES="-1")

    assert result.returncode == 1
    assert result.stderr == "error: this takes more memory than there is: ask for less\n"


def test_a_keras_json_of_the_user_changes_nothing(tmp_path):
    from autoencoder import Autoencoder

    images = make_images(4)
    Autoencoder((16, 12, 1), (4,), (3,), (2,), 3).save(tmp_path / "model")
    settings = {
        "floatx": "float16",
        "image_data_format": "channels_first",
        "backend": "tensorflow",
        "epsilon": 0.1,
    }
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    code = (
        "import numpy; from autoencoder import Autoencoder; "
        f"model = Autoencoder.load({str(tmp_path / 'model')!r}); "
        f"numpy.save({str(tmp_path / 'out.npy')!r}, model.encode(numpy.load("
        f"{str(tmp_path / 'in.npy')!r})))"
    )
    np.save(tmp_path / "in.npy", images)

    result = run_python(code, KERAS_HOME=str(tmp_path), CUDA_VISIBLE_DEVICES="-1")

    assert (result.returncode, result.stderr) == (0, "")
    latents = np.load(tmp_path / "out.npy")
    assert latents.dtype == np.float32
    np.testing.assert_allclose(
        latents, Autoencoder.load(tmp_path / "model").encode(images), atol=1e-6
    )


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


def test_a_folder_that_a_shell_left_empty_is_refused(capsys):
    with pytest.raises(SystemExit):
        preprocess.get_parser().parse_args(["--audio_files_dir", ""])

    assert "must not be empty" in capsys.readouterr().err
