"""The snippets of docs/python.md, run one after the other as a reader would."""

import re
import shutil

import numpy as np
import pytest

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

    import tensorflow as tf

    latents, autoencoder = names["latents"], names["autoencoder"]
    assert names["sound"].shape == names["signal"].shape and (tmp_path / "changed.wav").is_file()
    assert names["new_latents"].shape == (4, 12) and names["walk_latents"].shape == (20, 12)
    interpreter = tf.lite.Interpreter(str(tmp_path / "decoder.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], latents[:1])
    interpreter.invoke()
    image = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(image, autoencoder.decoder(latents[:1]), atol=1e-4)
