"""The snippets of docs/python.md, run one after the other as a reader would."""

import re
import shutil

import numpy as np
import pytest
import soundfile

import generate
from helpers import ROOT

PAGE = ROOT / "docs" / "python.md"


@pytest.mark.slow
def test_snippets_of_the_page_do_what_they_say(tmp_path, trained, monkeypatch):
    shutil.copytree(trained / "model", tmp_path / "model")  # alone, without features
    shutil.copy(trained / "song.wav", tmp_path)
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"```\npython generate.py (.*?)\n```", PAGE.read_text())
    generate.main(command.split())
    names = {}

    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(snippet, names)

    latents, autoencoder = names["latents"], names["generator"].autoencoder
    assert names["sound"].shape == names["signal"].shape and (tmp_path / "changed.wav").is_file()
    new = soundfile.info(tmp_path / "new.wav")
    assert (new.duration, new.samplerate) == (10, names["generator"].sample_rate)
    assert names["filled"].shape == names["signal"].shape and (tmp_path / "filled.wav").is_file()
    np.testing.assert_allclose(names["image"], autoencoder.decoder(latents[np.newaxis]), atol=1e-4)
