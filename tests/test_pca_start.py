import numpy as np
import pytest
from sklearn.decomposition import PCA

from autoencoder import Autoencoder, keras
from helpers import make_images
from support.errors import UserError
from training.pca_start import start_as_pca


def reconstruct_with_pca(images, n_components):
    """The oracle: scikit-learn's PCA of whole images."""
    points = images.reshape(len(images), -1)
    pca = PCA(n_components).fit(points)
    return pca.inverse_transform(pca.transform(points)).reshape(images.shape).clip(0, 1)


@pytest.mark.parametrize("shape", [(16, 12, 1), (17, 13, 1), (16, 12, 2)])
def test_the_start_equals_pca(shape):
    images = make_images(40, shape)
    # Enough main filters for every patch: nothing is lost before the bottleneck.
    autoencoder = Autoencoder(shape, (18, 72), (3, 3), (2, 2), 5)

    start_as_pca(autoencoder, images)

    # The starts of BatchNormalization are rounded to float32.
    oracle = reconstruct_with_pca(images, 5)
    np.testing.assert_allclose(autoencoder.reconstruct(images)[0], oracle, atol=2e-3)


@pytest.mark.parametrize("shape", [(16, 12, 1), (17, 13, 1), (16, 13, 2)])
def test_the_start_of_a_convolution_over_time_equals_pca(shape):
    images = make_images(40, shape)
    # Enough main filters for every patch: nothing is lost before the bottleneck.
    autoencoder = Autoencoder(shape, (72, 145), (1, 3), (1, 2), 5, bins_as_channels=True)

    start_as_pca(autoencoder, images)

    oracle = reconstruct_with_pca(images, 5)
    np.testing.assert_allclose(autoencoder.reconstruct(images)[0], oracle, atol=2e-3)


def test_the_start_works_with_fewer_images_than_latents():
    images = make_images(3)
    autoencoder = Autoencoder((16, 12, 1), (18, 72), (3, 3), (2, 2), 10)

    start_as_pca(autoencoder, images)

    np.testing.assert_allclose(autoencoder.reconstruct(images)[0], images, atol=0.02)


@pytest.mark.parametrize("images", [make_images(1), np.zeros((6, 16, 12, 1), np.float32)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_the_start_of_one_image_or_of_silence_warns_of_nothing(images):
    autoencoder = Autoencoder((16, 12, 1), (18, 72), (3, 3), (2, 2), 4)

    start_as_pca(autoencoder, images)

    np.testing.assert_allclose(autoencoder.reconstruct(images)[0], images, atol=0.02)


def test_every_weight_but_the_normalisations_learns_from_the_start():
    images = make_images(64)
    keras.utils.set_random_seed(0)
    autoencoder = Autoencoder((16, 12, 1), (6, 12), (3, 3), (2, 2), 80)  # more than images
    start_as_pca(autoencoder, images)
    before = autoencoder.model.get_weights()

    autoencoder.compile(1e-3)
    autoencoder.train(images, 16, 3)

    # A weight whose gradient is zero at the start, and stays so, is capacity thrown away.
    for variable, start in zip(autoencoder.model.variables, before, strict=True):
        moved = np.mean(variable.numpy() != start)
        assert (moved == 0) if "norm" in variable.path else (moved > 0.8), variable.path


@pytest.mark.slow
def test_training_lowers_the_loss_below_the_start():
    images = make_images(64)
    keras.utils.set_random_seed(0)
    autoencoder = Autoencoder((16, 12, 1), (6, 12), (3, 3), (2, 2), 4)
    start_as_pca(autoencoder, images)
    start = np.square(autoencoder.reconstruct(images)[0] - images).mean()

    autoencoder.compile(2e-3)
    autoencoder.train(images, 16, 40)

    assert np.square(autoencoder.reconstruct(images)[0] - images).mean() < 0.8 * start


class Renamed(Autoencoder):
    def _bottleneck(self, x):
        x = keras.layers.Flatten(name="flatten")(x)
        return keras.layers.Dense(self.latent_space_dim, name="code")(x)


class Residual(Autoencoder):
    def _conv_block(self, x, index):
        x = super()._conv_block(x, index)
        return keras.layers.Add()([x, keras.layers.Conv2D(4, 3, padding="same", name="more")(x)])


class Sigmoid(Autoencoder):
    def _deconv_block(self, x, index, shape):
        x = super()._deconv_block(x, index, shape)
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
        start_as_pca(autoencoder, make_images())
