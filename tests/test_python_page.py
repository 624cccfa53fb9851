"""The snippets of docs/python.md, run one after the other as a reader would."""

import re
import shutil

import numpy as np
import pytest
import soundfile

from helpers import ROOT

PAGE = ROOT / "docs" / "python.md"


@pytest.mark.slow
def test_snippets_of_the_page_do_what_they_say(tmp_path, trained, monkeypatch):
    shutil.copytree(trained / "model", tmp_path / "model")  # alone, without features
    shutil.copy(trained / "song.wav", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {}

    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(snippet, names)

    latents, autoencoder = names["latents"], names["generator"].autoencoder
    assert names["sound"].shape == names["signal"].shape and (tmp_path / "changed.wav").is_file()
    new = soundfile.info(tmp_path / "new.wav")
    assert (new.duration, new.samplerate) == (10, names["generator"].sample_rate)
    assert names["filled"].shape == names["signal"].shape and (tmp_path / "filled.wav").is_file()
    latents = latents[np.newaxis, :52]
    image = interpret(tmp_path / "decoder.tflite", latents)
    np.testing.assert_allclose(image, autoencoder.decoder(latents), atol=1e-4)
    again = interpret(tmp_path / "encoder.tflite", image)
    np.testing.assert_allclose(again, autoencoder.encoder(image), atol=1e-4)


def interpret(path, values):
    """What a .tflite file makes of values, whose length it takes."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(path))
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], values.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], values)
    interpreter.invoke()
    return interpreter.get_tensor(made["index"])
