"""The networks of a model as TFLite files, for where there is no Keras.

In:  a model folder.
Out: encoder.tflite and decoder.tflite; detail.tflite and prior.tflite if the model has these flows.

    for line in export_networks("model", "exported"):
        print(line)
"""

import contextlib
import io
from pathlib import Path

from support.detail import Detail
from support.errors import UserError
from support.files import make_printable, write_atomically
from support.prior import PRIOR, Prior


def export_networks(model, folder):
    """Write the networks of a model folder, each for any number of items and steps.

    Yields:
        a line on each: its path, its inputs and its output, with None for any number.
    Raises:
        UserError: Keras does not compute with TensorFlow.
    """
    from autoencoder import Autoencoder, keras

    if keras.config.backend() != "tensorflow":
        raise UserError("only TensorFlow writes TFLite files: set KERAS_BACKEND to tensorflow")
    import tensorflow as tf

    autoencoder, detail = Autoencoder.load(model), Detail.load(model)
    prior = Prior.load(model) if (Path(model) / PRIOR).exists() else None
    networks = {"encoder": autoencoder.encoder, "decoder": autoencoder.decoder}
    flows = {"detail": detail, "prior": prior}
    networks |= {name: learned.flow.network for name, learned in flows.items() if learned}
    for name, network in networks.items():
        # TensorFlow 2.21's converter takes a list of inputs, and no dict, and prints what it reads.
        plain = keras.Model(network.inputs, network.output)
        with contextlib.redirect_stdout(io.StringIO()):
            data = tf.lite.TFLiteConverter.from_keras_model(plain).convert()
        path = Path(folder) / f"{name}.tflite"
        write_atomically(path, data)
        inputs = ", ".join(f"{each.name} {each.shape}" for each in network.inputs)
        yield f"{make_printable(path)}: from {inputs} to {network.output.shape}"
