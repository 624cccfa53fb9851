"""What a student changes first: each a subclass of at most 20 lines that goes all the way.

Each trains an epoch, is interrupted and resumed, saved, loaded, and makes sound.
"""

import traceback

import numpy as np
import pytest
import soundfile

import autoencoder
import generate
import preprocess
import train
from autoencoder import Autoencoder, keras, layers
from helpers import SAMPLE_RATE, make_music, make_settings
from training.checkpoint import Checkpoint


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
        x = layers.Flatten(name="flatten")(x)
        mean = layers.Dense(self.latent_space_dim, name="latent")(x)
        log_variance = layers.Dense(self.latent_space_dim, name="log_variance")(x)
        return Sampling()([mean, log_variance])


class AbsoluteLoss(Autoencoder):
    def compile(self, learning_rate=1e-3):
        self.model.compile(optimizer=keras.optimizers.Adam(learning_rate), loss="mae")


class ResidualBlocks(Autoencoder):
    """A residual block and a layer of stride 1 behind every convolution."""

    def _conv_block(self, x, index):
        x = super()._conv_block(x, index)
        filters = self.conv_filters[index]
        y = layers.Conv2D(filters, (1, 3), padding="same", activation="relu")(x)
        y = layers.Conv2D(filters, (1, 3), padding="same")(y)
        return layers.Add()([x, y])


class GlobalPooling(Autoencoder):
    def _bottleneck(self, x):
        x = layers.GlobalAveragePooling2D()(x)
        return layers.Dense(self.latent_space_dim, name="latent")(x)


class SquareKernels(Autoencoder):
    def __post_init__(self):
        self.bins_as_channels = False
        self.conv_kernels, self.conv_strides = (3, 3), (2, 2)
        super().__post_init__()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the features of four short tracks."""
    folder = tmp_path_factory.mktemp("hacking")
    (folder / "audio").mkdir()
    for track in range(4):
        soundfile.write(folder / "audio" / f"{track}.wav", make_music(0.9, seed=track), SAMPLE_RATE)
    settings = make_settings(hop_length=128)
    preprocess.preprocess_folder(folder / "audio", folder / "saved_data", settings, jobs=1)
    return folder


def make_arguments(folder, model, *flags):
    return ["--saved_data", str(folder / "saved_data"), "--model", str(model), *flags]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed, start",
    [
        (VariationalAutoencoder, "pca"),
        (AbsoluteLoss, "pca"),
        (ResidualBlocks, "random"),
        (SquareKernels, "pca"),
        (GlobalPooling, "random"),
    ],
)
def test_a_changed_network_goes_all_the_way(tmp_path, folder, monkeypatch, changed, start):
    monkeypatch.setattr(autoencoder, "Autoencoder", changed)
    model, samples = tmp_path / "model", tmp_path / "samples"
    small = ["--conv_filters", "4", "8", "--latent_space_dim", "5", "--no-logs", "--epochs", "2"]
    arguments = make_arguments(folder, model, *small, "--start", start, "--batch_size", "4")
    save = Checkpoint.save

    def save_and_stop(checkpoint, folder):
        save(checkpoint, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "save", save_and_stop)
        train.main(arguments)
    train.main([*arguments, "--resume"])
    for flags in (("--num_spectrograms", "1"), ("--sample", "1")):
        generate.main(make_arguments(folder, model, "--samples", str(samples), *flags))

    assert [row["epoch"] for row in Checkpoint.load(model).rows] == [0, 1, 2]
    for kind, count in (("generated", 1), ("new", 1)):
        paths = [*(samples / kind).glob("*.wav")]
        assert len(paths) == count and all(soundfile.read(path)[0].any() for path in paths)
    loaded = changed.load(model)
    images = train.load_fsdd(folder / "saved_data" / "spectrograms")
    reconstructed, latents = loaded.reconstruct(images)
    assert reconstructed.shape == images.shape and latents.shape == (len(images), 5)
    np.testing.assert_array_equal(loaded.reconstruct(images)[1], latents)  # no noise is left


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
            x = layers.Reshape((7, 7))(x)  # the slip
            return super()._bottleneck(x)

    monkeypatch.setattr(autoencoder, "Autoencoder", Wrong)
    with pytest.raises(ValueError) as raised:
        train.run_script(lambda: train.main(make_arguments(folder, tmp_path / "model")))

    lines = [frame.line for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert any("# the slip" in line for line in lines)
