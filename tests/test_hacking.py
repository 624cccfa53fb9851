"""What a student changes first: the rows of README's "Change the model".

Each trains, is interrupted after an epoch, resumes, is saved and loaded, and makes sound.
"""

import re
import shlex
import traceback
import types

import numpy as np
import pytest
import soundfile

import autoencoder
import generate
import preprocess
import train
from autoencoder import Autoencoder, keras, layers
from helpers import ROOT, make_settings, name_folders, write_tracks
from training.checkpoint import Checkpoint

SOURCE = (ROOT / "autoencoder.py").read_text()
SMALL = ["--conv_filters", "4", "8", "--latent_space_dim", "5"]


def read_rows():
    """{what is wanted: the text of its row} of README's table."""
    section = (ROOT / "README.md").read_text().split("## Change the model")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", section, re.MULTILINE)
    return dict(rows[1:])


def apply_row(text):
    """(the Autoencoder that a row's edits make of autoencoder.py, its flags of train.py)."""
    source = SOURCE
    for old, new in re.findall(r"`([^`]+)` becomes `([^`]+)`", text):
        assert source.count(old) == 1, old
        indent = re.search(rf"^( *).*{re.escape(old)}", source, re.MULTILINE)[1]
        source = source.replace(old, new.replace("; ", f"\n{indent}"))
    commands = re.findall(r"`(?:python train\.py )?(--[^`]+)`", text)
    module = types.ModuleType("autoencoder")
    exec(compile(source, "autoencoder.py", "exec"), module.__dict__)
    return module, shlex.split(" ".join(commands))


@keras.saving.register_keras_serializable()
class Sampling(layers.Layer):
    """A draw around the mean while training; the mean afterwards."""

    def call(self, inputs, training=False):
        mean, log_variance = inputs
        kl = -0.5 * keras.ops.mean(1 + log_variance - mean**2 - keras.ops.exp(log_variance))
        self.add_loss(1e-3 * kl)
        noise = keras.random.normal(keras.ops.shape(mean)) if training else 0.0
        return mean + keras.ops.exp(log_variance / 2) * noise


class VariationalAutoencoder(Autoencoder):
    def _bottleneck(self, x):
        mean = super()._bottleneck(x)
        log_variance = layers.Dense(self.latent_space_dim, name="log_variance")(mean)
        return Sampling()([mean, log_variance])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the features of four short tracks."""
    folder = tmp_path_factory.mktemp("hacking")
    write_tracks(folder / "audio", 4, duration=0.9)
    settings = make_settings(hop_length=128)
    preprocess.preprocess_folder(folder / "audio", folder / "saved_data", settings, jobs=1)
    return folder


def go_all_the_way(tmp_path, folder, flags):
    """Train an epoch, be interrupted, resume, and make sound; the loaded model's latents."""
    model, samples = tmp_path / "model", tmp_path / "samples"
    flags = ["--no-logs", "--epochs", "2", "--batch_size", "4", "--flow_epochs", "0", *flags]
    arguments = [*name_folders(folder, model), *flags]
    save = Checkpoint.save

    def save_and_stop(checkpoint, folder):
        save(checkpoint, folder)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "save", save_and_stop)
        train.main(arguments)
    train.main([*arguments, "--resume"])
    pairs = "--samples", str(samples), "pairs", "--count", "1"
    generate.main([*name_folders(folder, model), *pairs])

    assert [row["epoch"] for row in Checkpoint.load(model / "checkpoint.npz").rows] == [0, 1, 2]
    (path,) = (samples / "generated").glob("*.wav")
    assert soundfile.read(path)[0].any()
    loaded = autoencoder.Autoencoder.load(model)
    images = train.load_fsdd(folder / "saved_data" / "spectrograms")
    reconstructed, latents = loaded.reconstruct(images)
    assert reconstructed.shape == images.shape
    np.testing.assert_allclose(loaded.reconstruct(images)[1], latents, atol=1e-6)  # without noise
    return latents


@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted, shape",
    [
        ("a deeper network", (2, 32)),
        ("one latent for a piece of 256 frames", (1, 32)),  # no more than it has filters
        ("another loss", (26, 5)),
        ("square 2-D kernels", (7, 5)),
        ("a residual block", (26, 5)),
        ("no start from PCA", (26, 5)),
    ],
)
def test_a_row_of_the_readme_goes_all_the_way(tmp_path, folder, monkeypatch, eager, wanted, shape):
    module, flags = apply_row(read_rows()[wanted])
    flags = [flag.removesuffix("0") for flag in flags]  # a tenth of the filters
    assert flags or "becomes" in read_rows()[wanted]
    monkeypatch.setattr(autoencoder, "Autoencoder", module.Autoencoder)
    monkeypatch.setattr(autoencoder, "choose_architecture", module.choose_architecture)

    small = [] if "--conv_filters" in flags else SMALL
    latents = go_all_the_way(tmp_path, folder, [*small, *flags])

    assert latents.shape[1:] == shape


@pytest.mark.slow
def test_a_vae_goes_all_the_way(tmp_path, folder, monkeypatch, eager):
    monkeypatch.setattr(autoencoder, "Autoencoder", VariationalAutoencoder)

    latents = go_all_the_way(tmp_path, folder, SMALL)

    assert latents.shape[1:] == (26, 5)


def test_a_new_parameter_is_saved_and_loaded(tmp_path):
    import dataclasses

    @dataclasses.dataclass(eq=False)
    class Weighted(Autoencoder):
        kl_weight: float = 1e-6

    Weighted((16, 12, 1), (4,), (3,), (2,), 3, kl_weight=1.0).save(tmp_path)

    assert Weighted.load(tmp_path).kl_weight == 1.0


def test_a_wrong_reshape_ends_in_a_traceback_that_names_the_line(folder, tmp_path, monkeypatch):
    class Wrong(Autoencoder):
        def _bottleneck(self, x):
            x = layers.Add()([x, layers.Dense(3)(x)])  # the slip
            return super()._bottleneck(x)

    monkeypatch.setattr(autoencoder, "Autoencoder", Wrong)
    with pytest.raises(ValueError) as raised:
        train.run_script(lambda: train.main(name_folders(folder, tmp_path / "model")))

    lines = [frame.line for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert any("# the slip" in line for line in lines)
