"""Keras, on TensorFlow or JAX, without the notices of their start.

from support.keras import keras
"""

import gc
import logging
import os
import sys

from support.errors import UserError
from support.files import native_silence

WARM_UP = 0.05  # share of a schedule's steps

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What is imported stays. To look for garbage in it, time and again, would take a fifth of the
# import, and seconds more when Python exits. Another fifth would be scikit-learn, for wrappers.
gc.disable()
sys.modules.setdefault("sklearn", None)
try:
    with native_silence:  # TensorFlow 2.21 logs a dozen notices before it reads that level
        import keras

        logging.getLogger("tensorflow").setLevel(logging.ERROR)  # else it warns of each new shape
        if keras.config.backend() == "tensorflow":  # JAX must not look before its processes join
            keras.distribution.list_devices()
    if keras.config.backend() not in ("tensorflow", "jax"):
        raise ImportError(f"Keras would compute with {keras.config.backend()}")
except ImportError as error:
    raise UserError(
        f"{error}: set KERAS_BACKEND to tensorflow or jax, and install requirements.txt"
    ) from error
finally:
    if sys.modules["sklearn"] is None:
        del sys.modules["sklearn"]  # it may be imported from here on
    gc.freeze()
    gc.enable()
# What a user's keras.json may say is not what a saved model means.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")
keras.config.set_dtype_policy("float32")
keras.config.set_epsilon(1e-7)


def choose_compilation():
    """Whether Keras is to compile with XLA: not for a processor's TensorFlow, whose own
    convolutions are 1.2 to 1.5 times as fast (2.21)."""
    if keras.config.backend() == "jax":
        return True
    return "auto" if keras.distribution.list_devices("gpu") else False


def make_schedule(learning_rate, n_steps):
    """A short warm-up to a learning rate, then a cosine decay to zero."""
    n_warm_up = max(1, round(WARM_UP * n_steps))
    return keras.optimizers.schedules.CosineDecay(
        0.0, max(1, n_steps - n_warm_up), warmup_target=learning_rate, warmup_steps=n_warm_up
    )
