import numpy as np
import pytest
from sklearn.decomposition import PCA

from autoencoder import Autoencoder, keras, weigh_rows
from helpers import make_images
from support.errors import UserError
from training.pca_start import compute_components, start_as_pca


def reconstruct_with_pca(images, n_components):
    """The oracle: scikit-learn's PCA of whole images."""
    points = images.reshape(len(images), -1)
    pca = PCA(n_components).fit(points)
    return pca.inverse_transform(pca.transform(points)).reshape(images.shape).clip(0, 1)


@pytest.mark.parametrize("shape", [(16, 12, 1), (17, 12, 1), (16, 11, 2)])
def test_the_start_equals_pca(shape):
    images = make_images(40, shape)
    # One frame is left before the bottleneck, so that no two could be alike; and enough main
    # filters for every patch: nothing is lost before it.
    strides = ((2, 3), (2, 4))
    autoencoder = Autoencoder(shape, (30, 350), ((3, 3), (3, 5)), strides, 5)

    start_as_pca(autoencoder, images)

    # The starts of BatchNormalization are rounded to float32.
    oracle = reconstruct_with_pca(images, 5)
    np.testing.assert_allclose(autoencoder.reconstruct(images)[0], oracle, atol=2e-3)


@pytest.mark.parametrize("shape", [(16, 12, 1), (17, 11, 1), (16, 12, 2)])
def test_the_start_of_a_convolution_over_time_equals_pca(shape):
    images = make_images(40, shape)
    autoencoder = Autoencoder(shape, (72, 900), (1, 12), (1, 12), 5, bins_as_channels=True)

    start_as_pca(autoencoder, images)

    oracle = reconstruct_with_pca(images, 5)
    np.testing.assert_allclose(autoencoder.reconstruct(images)[0], oracle, atol=2e-3)


def test_the_start_weighs_rows_as_the_loss_does():
    images = make_images(40)
    images[:, 8:] += 0.2 * np.random.default_rng(0).standard_normal((40, 8, 12, 1))
    errors = []

    for bin_hz in (0, 2000):
        layers = (16, 12, 1), (72, 900), (1, 12), (1, 12), 5
        autoencoder = Autoencoder(*layers, bins_as_channels=True, bin_hz=bin_hz)
        start_as_pca(autoencoder, images)
        errors.append(np.square(autoencoder.reconstruct(images)[0] - images).mean(axis=(0, 2, 3)))

    weights = weigh_rows(16, 2000)[:, 0, 0]
    assert errors[0].mean() < errors[1].mean()
    assert (weights * errors[1]).mean() < (weights * errors[0]).mean()


def make_stationary_maps(n, rng):
    """Noise of two channels that changes with time, alike at every moment."""
    mixed = rng.standard_normal((n, 40, 2)).astype(np.float32)
    for frame in range(1, 40):
        mixed[:, frame] = 0.5 * mixed[:, frame - 1] + 0.87 * mixed[:, frame]
    return mixed[:, 30:] @ np.array([[2, 1], [0, 0.3]], np.float32)


def test_few_maps_that_are_alike_at_every_moment_are_enough():
    rng = np.random.default_rng(1)
    maps, others = make_stationary_maps(40, rng), make_stationary_maps(500, rng)
    points, other_points = (m.reshape(len(m), -1) for m in (maps, others))

    mean, components = compute_components(maps, 8)

    assert components.shape == (8, 20)
    np.testing.assert_allclose(components @ components.T, np.eye(8), atol=1e-4)
    oracle = PCA(8).fit(points)
    error, oracle_error = (
        np.square((other_points - m) - (other_points - m) @ c.T @ c).mean()
        for m, c in ((mean, components), (oracle.mean_, oracle.components_))
    )
    assert error < 0.9 * oracle_error


def test_many_maps_with_a_course_of_their_own_keep_it():
    rng = np.random.default_rng(0)
    course = np.linspace(0, 1, 10, dtype=np.float32)[:, np.newaxis]  # louder and louder
    maps = course * rng.standard_normal((2000, 10, 2)).astype(np.float32)

    _, components = compute_components(maps, 4)

    oracle = PCA(4).fit(maps.reshape(2000, -1)).components_
    overlap = np.linalg.svd(components @ oracle.T, compute_uv=False)
    assert overlap.min() > 0.95


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
