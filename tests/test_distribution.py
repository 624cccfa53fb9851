"""Training on several devices, and in several processes, against training on one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
TRAIN = """
import sys
import numpy as np
import train
from training import devices
{setup}
rng = np.random.default_rng(0)
waves = rng.uniform(0.1, 0.7, (24, 2, 1, 1))
rows, columns = np.mgrid[0:16, 0:12]
images = (0.5 + 0.5 * np.sin(waves[:, 0] * rows + waves[:, 1] * columns))[..., np.newaxis]
images = images.astype(np.float32)
autoencoder = train.train(
    images, 2e-3, 8, 5, x_validation=images[:6], conv_filters=(8, 16), latent_space_dim=3,
    precision="float32",
)
np.savez(sys.argv[1], *autoencoder.model.get_weights())
"""
MIRRORED = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
devices.list_gpus = lambda: ["CPU:0", "CPU:1"]
"""
JOIN = 'devices.join_processes("127.0.0.1:{port}", 2, {process_id})'


def start(folder, name, setup="", **environment):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN.format(setup=setup), str(folder / name)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "MPLCONFIGDIR": str(folder), **environment},
    )  # fmt: skip


def finish(*processes):
    """Wait for the processes to end well."""
    for process in processes:
        printed, errors = process.communicate(timeout=240)
        assert process.returncode == 0, printed + errors


def load(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


def assert_close(weights, others):
    # The devices' sums are rounded in another order, which gives means of a few 1e-9; gradients of
    # other batches would move every weight by up to the learning rate a step, 1e-2 in all.
    for values, other in zip(weights, others, strict=True):
        assert np.abs(values - other).mean() < 1e-5


def test_two_devices_train_like_one(tmp_path):
    finish(start(tmp_path, "one.npz"), start(tmp_path, "two.npz", MIRRORED))

    assert_close(load(tmp_path / "one.npz"), load(tmp_path / "two.npz"))


def test_two_processes_train_like_one(tmp_path):
    pytest.importorskip("jax")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jax = {"KERAS_BACKEND": "jax"}

    finish(*(
        start(tmp_path, f"{process_id}.npz", JOIN.format(port=port, process_id=process_id), **jax)
        for process_id in (0, 1)
    ))  # fmt: skip
    finish(start(tmp_path, "one.npz", **jax))

    weights = load(tmp_path / "0.npz")
    for values, other in zip(weights, load(tmp_path / "1.npz"), strict=True):
        np.testing.assert_array_equal(values, other)
    assert_close(load(tmp_path / "one.npz"), weights)


def test_a_coordinator_that_does_not_answer_is_named(tmp_path):
    pytest.importorskip("jax")
    setup = "devices.CONNECT_S = 1\n" + JOIN.format(port=9, process_id=1)

    process = start(tmp_path, "none.npz", setup, KERAS_BACKEND="jax")
    _, errors = process.communicate(timeout=240)

    assert "ValueError: --coordinator 127.0.0.1:9 does not answer" in errors
