"""Training on several devices against training on one; test_resume.py has several processes."""

import os
import subprocess
import sys

import numpy as np
import pytest

from helpers import ROOT, assert_close
from support.errors import UserError
from training import devices

pytestmark = pytest.mark.slow
TRAIN = """
import sys
import numpy as np
import train
from training import devices
{setup}
from autoencoder import choose_architecture
from training.callbacks import History
rng = np.random.default_rng(0)
waves = rng.uniform(0.1, 0.7, (24, 2, 1, 1))
rows, columns = np.mgrid[0:16, 0:12]
images = (0.5 + 0.5 * np.sin(waves[:, 0] * rows + waves[:, 1] * columns))[..., np.newaxis]
images = images.astype(np.float32)
architecture = choose_architecture(
    images.shape[1:], conv_filters=(8,), latent_space_dim=3
)
callbacks = [History()]  # the weights stay the last ones; the best may be the start's
autoencoder = train.train(
    images, 5e-4, 8, 2, x_validation=images[:6], architecture=architecture, callbacks=callbacks
)
np.savez(sys.argv[1], *autoencoder.model.get_weights())
"""
MIRRORED = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
devices.list_gpus = lambda: ["CPU:0", "CPU:1"]
"""


def load(path):
    with np.load(path) as file:
        return [file[name] for name in file.files]


def test_two_devices_train_like_one(tmp_path, monkeypatch, eager):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    process = subprocess.Popen(
        [sys.executable, "-c", TRAIN.format(setup=MIRRORED), str(two)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path)},
    )
    monkeypatch.setattr(sys, "argv", ["", str(one)])
    exec(TRAIN.format(setup=""), {})  # on one device, in this process
    printed, errors = process.communicate(timeout=240)

    assert process.returncode == 0, printed + errors
    assert_close(load(one), load(two))


def test_a_coordinator_that_does_not_answer_is_named(monkeypatch):
    pytest.importorskip("jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setattr(devices, "CONNECT_S", 0.1)

    with pytest.raises(UserError, match="--coordinator 127.0.0.1:9 does not answer"):
        devices.join_processes("127.0.0.1:9", 2, 1)
