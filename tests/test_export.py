import types

import numpy as np
import pytest

import generate
from autoencoder import Autoencoder, keras
from generation.export import export_networks
from support.detail import Detail
from support.errors import UserError
from support.flow import Flow
from support.prior import Prior


@pytest.fixture
def networks(tmp_path):
    """{name: network} of a small model, which is in the folder `model`."""
    autoencoder = Autoencoder((16, 12, 1), (4, 6), (3, 3), (2, 2), 3)
    autoencoder.save(tmp_path / "model")
    rng, row = np.random.default_rng(0), np.ones(16, np.float32)
    detail = Detail(Flow(16, 32, 0, 8, (1, 2)), row, row, row, np.ones((17, 17), np.float32))
    prior = Prior(Flow(3, 1, 4, 8, (1, 4)), 8, *[np.ones(3, np.float32)] * 8)
    for learned in (detail, prior):  # whose velocities are 0 at first
        weights = learned.flow.network.get_weights()
        learned.flow.network.set_weights([rng.uniform(-0.3, 0.3, each.shape) for each in weights])
        learned.save(tmp_path / "model")
    flows = {"detail": detail.flow.network, "prior": prior.flow.network}
    return {"encoder": autoencoder.encoder, "decoder": autoencoder.decoder, **flows}


def make_inputs(network, n, steps):
    """Random inputs of a network by name; a style is the same at each step."""
    rng, inputs = np.random.default_rng(1), {}
    for each in network.inputs:
        shape = [steps if size is None else size for size in each.shape[1:]]
        shape = [1, *shape[1:]] if each.name == "style" else shape
        inputs[each.name] = rng.uniform(-1, 1, (n, *shape)).astype(np.float32)
    return inputs


@pytest.mark.slow
def test_exported_networks_give_the_same_numbers_at_any_length(tmp_path, networks, capsys):
    import tensorflow as tf

    generate.main(["--model", str(tmp_path / "model"), "export", str(tmp_path / "out")])

    lines = capsys.readouterr().out.splitlines()
    assert lines[3].endswith(
        "prior.tflite: from given (None, None, 1), place (None, None, 3), "
        "style (None, None, 4), time (None, 1) to (None, None, 3)"
    )
    assert len(lines) == len([*(tmp_path / "out").iterdir()]) == len(networks)
    for name, network in networks.items():
        interpreter = tf.lite.Interpreter(str(tmp_path / "out" / f"{name}.tflite"))
        run = interpreter.get_signature_runner()
        for n, steps in ((1, 8), (2, 20)):
            inputs = make_inputs(network, n, steps)
            expected = network(inputs if len(inputs) > 1 else [*inputs.values()][0]).numpy()
            assert expected.std() > 0.01
            np.testing.assert_allclose(run(**inputs)["output_0"], expected, atol=1e-4)


def test_a_model_without_flows_is_exported_without_them(tmp_path, networks, monkeypatch):
    import tensorflow as tf

    none = types.SimpleNamespace(convert=lambda: b"")  # a real one takes seconds
    monkeypatch.setattr(tf.lite.TFLiteConverter, "from_keras_model", lambda _: none)
    for name in ("detail.npz", "prior.npz"):
        (tmp_path / "model" / name).unlink()

    assert len([*export_networks(tmp_path / "model", tmp_path / "out")]) == 2

    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "encoder.tflite",
        "decoder.tflite",
    }


def test_jax_is_told_that_only_tensorflow_exports(tmp_path, monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")

    with pytest.raises(UserError, match="set KERAS_BACKEND to tensorflow"):
        [*export_networks(tmp_path, tmp_path)]
