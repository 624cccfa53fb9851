"""The devices and processes that train together.

In:  flags, and what TensorFlow or JAX sees.
Out: a Distribution to build and fit the model in.

    with choose_distribution().scope: ...
"""

import contextlib
import os
import socket
import time
from typing import NamedTuple

from support.errors import UserError

CONNECT_S = 60  # seconds that the processes of a run wait for each other


def prepare_devices(device, coordinator, num_processes, process_id):
    """Show TensorFlow or JAX the devices asked for, and join the other processes of the run.

    Raises:
        UserError: a GPU was asked for and none is seen, or the processes do not meet.
    """
    if device == "cpu":  # before TensorFlow or JAX is imported
        os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")
    if coordinator:
        join_processes(coordinator, num_processes, process_id)
    elif (num_processes, process_id) != (1, 0):
        raise UserError("--num_processes and --process_id need --coordinator HOST:PORT")
    if device == "gpu" and not list_gpus():
        raise UserError("--device gpu: no GPU is seen; check its driver, or leave the flag out")


def join_processes(coordinator, num_processes, process_id):
    """Let this process train together with the others of its run.

    Raises:
        UserError: the backend is not JAX, or the others did not come within CONNECT_S.
    """
    if os.environ.get("KERAS_BACKEND") != "jax":
        raise UserError("--coordinator needs KERAS_BACKEND=jax: set it in the environment")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or process_id >= num_processes:
        raise UserError(
            "--coordinator must be HOST:PORT and --process_id below --num_processes, "
            f"got {coordinator}, {process_id} and {num_processes}"
        )
    import jax

    if process_id > 0:
        wait_for(host, int(port))
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, initialization_timeout=CONNECT_S
        )
    except RuntimeError as error:
        raise UserError(f"{coordinator}: the processes did not meet: {error}") from error


def wait_for(host, port):
    """Return once something answers at an address; UserError after CONNECT_S."""
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            socket.create_connection((host, port), timeout=CONNECT_S).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator {host}:{port} does not answer ({error}): start process 0 there"
                ) from error
            time.sleep(0.5)


def list_gpus():
    from autoencoder import keras

    try:
        return keras.distribution.list_devices("gpu")
    except RuntimeError:  # JAX raises if there is none
        return []


class Distribution(NamedTuple):
    """The devices that train together."""

    scope: object = contextlib.nullcontext()  # to build and fit the model in
    n_devices: int = 1  # that share a batch
    share: tuple = (0, 1)  # (index, count) of this process

    def replicate(self, autoencoder):
        """In the scope: the same autoencoder on all devices, with the first process's weights.

        What is frozen stays frozen. Two machines round differently, and a component without
        variance has no direction.
        """
        if self.n_devices == 1:
            return autoencoder
        weights = autoencoder.model.get_weights()
        if self.share[1] > 1:
            from jax.experimental import multihost_utils

            weights = multihost_utils.broadcast_one_to_all(weights)
        replica = copy_autoencoder(autoencoder, weights)
        for half in ("encoder", "decoder"):
            layers, copies = (getattr(model, half).layers for model in (autoencoder, replica))
            for layer, copy in zip(layers, copies, strict=True):
                copy.trainable = layer.trainable
        return replica

    def localise(self, autoencoder):
        """The same autoencoder for this process alone, which need not wait for others."""
        if self.n_devices == 1:
            return autoencoder
        return copy_autoencoder(autoencoder, autoencoder.model.get_weights())

    def wait_for_all(self):
        """Return when all processes of the run have come here."""
        if self.share[1] > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("done")


ONE_DEVICE = Distribution()


def copy_autoencoder(autoencoder, weights):
    """Another autoencoder of the same class and parameters."""
    copy = type(autoencoder)(**autoencoder.parameters)
    copy.model.set_weights(weights)
    return copy


def choose_distribution():
    """The Distribution over all devices of this machine, or of all that joined the run."""
    from autoencoder import keras

    if keras.config.backend() == "tensorflow" and len(list_gpus()) > 1:
        import tensorflow as tf

        return Distribution(tf.distribute.MirroredStrategy(list_gpus()).scope(), len(list_gpus()))
    if keras.config.backend() == "jax":
        import jax

        if jax.device_count() > 1:
            parallel = keras.distribution.DataParallel(auto_shard_dataset=False)
            share = (jax.process_index(), jax.process_count())
            return Distribution(parallel.scope(), jax.device_count(), share)
    return ONE_DEVICE


def choose_precision(precision, coordinator=None):
    """The precision asked for; "auto" is bfloat16 on a GPU that has it, else float32.

    Machines that train together might choose differently, so there it is float32, too.
    """
    if precision != "auto":
        return precision
    if coordinator or not list_gpus():
        return "float32"
    from autoencoder import keras

    if keras.config.backend() != "tensorflow":
        return "bfloat16"
    import tensorflow as tf

    gpu = tf.config.list_physical_devices("GPU")[0]
    capability = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
    return "bfloat16" if capability >= (8, 0) else "float32"  # from Ampere on
