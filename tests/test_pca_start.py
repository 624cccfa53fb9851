import numpy as np
import pytest
from sklearn.decomposition import PCA

from autoencoder import Autoencoder, keras, weigh_rows
from helpers import make_images
from support.errors import UserError
from training import pca_start
from training.pca_start import start_as_pca
from training.windows import Windows


def start(autoencoder, images):
    start_as_pca(autoencoder, Windows(images, seed=0, shift=False))


def reconstruct_with_pca(images, n_components):
    """The oracle: scikit-learn's PCA of whole images."""
    points = images.reshape(len(images), -1)
    pca = PCA(n_components).fit(points)
    return pca.inverse_transform(pca.transform(points)).reshape(images.shape).clip(0, 1)


NETWORKS = {  # a piece is one step, and enough main filters for every patch: nothing is lost before
    False: ((30, 350), ((3, 3), (3, 5)), ((2, 3), (2, 4))),
    True: ((72, 900), (1, 12), (1, 12)),
}


@pytest.mark.parametrize("bins_as_channels", NETWORKS)
@pytest.mark.parametrize("shape", [(16, 12, 1), (17, 11, 1), (16, 12, 2)])
def test_the_start_equals_pca(shape, bins_as_channels):
    images, how = make_images(40, shape), {"bins_as_channels": bins_as_channels}
    autoencoder = Autoencoder(shape, *NETWORKS[bins_as_channels], 5, **how)

    start(autoencoder, images)

    # The starts of BatchNormalization are rounded to float32.
    oracle = reconstruct_with_pca(images, 5)
    np.testing.assert_allclose(autoencoder.reconstruct(images)[0], oracle, atol=2e-3)


def test_the_start_weighs_rows_as_the_loss_does():
    images = make_images(40)
    images[:, 8:] += 0.2 * np.random.default_rng(0).standard_normal((40, 8, 12, 1))
    errors = []

    for bin_hz in (0, 2000):
        layers = (16, 12, 1), (72, 900), (1, 12), (1, 12), 5
        autoencoder = Autoencoder(*layers, bins_as_channels=True, bin_hz=bin_hz)
        start(autoencoder, images)
        errors.append(np.square(autoencoder.reconstruct(images)[0] - images).mean(axis=(0, 2, 3)))

    weights = weigh_rows(16, 2000)[:, 0, 0]
    assert errors[0].mean() < errors[1].mean()
    assert (weights * errors[1]).mean() < (weights * errors[0]).mean()


def test_the_start_is_the_pca_of_steps():
    images = make_images(40)
    autoencoder = Autoencoder((16, 12, 1), (30, 130), (1, 4), (1, 4), 5, bins_as_channels=True)

    start(autoencoder, images)

    steps = images.reshape(40, 16, 3, 4, 1).transpose(0, 2, 1, 3, 4).reshape(120, 16, 4, 1)
    oracle = reconstruct_with_pca(steps, 5).reshape(40, 3, 16, 4, 1).transpose(0, 2, 1, 3, 4)
    reconstructed, _ = autoencoder.reconstruct(images)
    np.testing.assert_allclose(reconstructed, oracle.reshape(images.shape), atol=2e-3)


def test_a_covariance_too_large_for_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(pca_start, "MAX_COVARIANCE_BYTES", 500)
    autoencoder = Autoencoder((16, 12, 1), (4, 8), (3, 3), (2, 2), 3)

    with pytest.raises(UserError, match="needs a covariance .*: use --start random"):
        start(autoencoder, make_images())


@pytest.mark.parametrize("images", [make_images(1), np.zeros((6, 16, 12, 1), np.float32)])
def test_the_start_of_one_image_or_of_silence_warns_of_nothing(images):
    autoencoder = Autoencoder((16, 12, 1), (18, 72), (3, 3), (2, 2), 4)

    start(autoencoder, images)

    np.testing.assert_allclose(autoencoder.reconstruct(images)[0], images, atol=0.02)


def test_every_weight_but_the_normalisations_learns_from_the_start(eager):
    images = make_images(64)
    keras.utils.set_random_seed(0)
    autoencoder = Autoencoder((16, 12, 1), (6, 12), (3, 3), (2, 2), 80)  # more than images
    start(autoencoder, images)
    before = autoencoder.model.get_weights()

    autoencoder.compile(1e-3)
    autoencoder.train(images, 16, 3)

    # A weight whose gradient is zero at the start, and stays so, is capacity thrown away.
    for variable, old in zip(autoencoder.model.variables, before, strict=True):
        moved = np.mean(variable.numpy() != old)
        assert (moved == 0) if "norm" in variable.path else (moved > 0.8), variable.path


class Renamed(Autoencoder):
    def _bottleneck(self, x):
        x = keras.layers.Reshape((-1, x.shape[1] * x.shape[3]), name="flatten")(x)
        return keras.layers.Dense(self.latent_space_dim, name="code")(x)


class Residual(Autoencoder):
    def _conv_block(self, x, index):
        x = super()._conv_block(x, index)
        return keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding="same", name="more")(x)])


class Sigmoid(Autoencoder):
    def _deconv_block(self, x, index, filters):
        x = super()._deconv_block(x, index, filters)
        return keras.layers.Activation("sigmoid", name="squash")(x)


@pytest.mark.parametrize(
    "changed, fault",
    [
        (Renamed, "latent is missing"),
        (Residual, "more is added"),
        (Sigmoid, "squash is not linear"),
    ],
)
def test_the_start_refuses_a_network_that_it_does_not_know(changed, fault):
    autoencoder = changed((16, 12, 1), (4,), (3,), (2,), 3)

    with pytest.raises(UserError, match=f"{fault}: use --start random"):
        start(autoencoder, make_images())
