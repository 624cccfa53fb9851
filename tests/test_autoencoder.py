import librosa
import numpy as np
import pytest

from autoencoder import Autoencoder, choose_architecture, keras, weigh_rows
from helpers import make_images
from support.errors import UserError


def make_small(shape=(16, 12, 1), latent_space_dim=4, **options):
    keras.utils.set_random_seed(0)
    return Autoencoder(shape, (6, 12), (3, 3), (2, 2), latent_space_dim, **options)


@pytest.mark.parametrize(
    "shape, kernels, strides",
    [
        ((17, 13, 1), (5, 3), (2, 2)),
        ((16, 12, 2), (5, 3), (2, 3)),
        ((9, 40, 1), (5, 3), ((1, 4), (3, 2))),
    ],
)
def test_output_has_the_shape_of_the_input(shape, kernels, strides):
    autoencoder = Autoencoder(shape, (4, 8), kernels, strides, 3)

    images, latents = autoencoder.reconstruct(make_images(2, shape))

    assert images.shape == (2, *shape) and latents.shape == (2, autoencoder.n_steps, 3)
    assert images.min() >= 0 and images.max() <= 1


@pytest.mark.parametrize("bins_as_channels", [False, True])
def test_decoder_mirrors_the_encoder(bins_as_channels):
    autoencoder = make_small((17, 13, 1), bins_as_channels=bins_as_channels)

    encoder = [layer.output.shape for layer in autoencoder.encoder.layers if "conv" in layer.name]
    decoder = [layer.input.shape for layer in autoencoder.decoder.layers if "deconv" in layer.name]

    assert encoder[::-1] == decoder


def test_the_documents_call_builds_trains_saves_and_loads(tmp_path, eager):
    autoencoder = Autoencoder((64, 32, 1), (8, 16), (3, 3), (2, 2), 4)
    images = make_images(8, (64, 32, 1))
    autoencoder.compile(1e-3)
    autoencoder.train(images, 4, 1)
    autoencoder.save(tmp_path)

    loaded = Autoencoder.load(tmp_path)

    reconstructed, latents = loaded.reconstruct(images)
    assert reconstructed.shape == images.shape and latents.shape == (8, 8, 4)
    assert loaded.parameters == autoencoder.parameters
    np.testing.assert_array_equal(reconstructed, autoencoder.reconstruct(images)[0])
    assert {path.name for path in tmp_path.iterdir()} == {"model.weights.h5", "parameters.json"}


def test_a_step_as_wide_as_the_image_is_flatten_and_dense():
    autoencoder = Autoencoder((16, 12, 1), (4,), (3,), ((2, 12),), 5)
    image = make_images(1)
    flatten = autoencoder.encoder.get_layer("flatten")
    (maps,) = keras.Model(autoencoder.encoder.input, flatten.input)(image).numpy()
    kernel, bias = autoencoder.encoder.get_layer("latent").get_weights()

    latents = autoencoder.encode(image)

    assert latents.shape == (1, 1, 5)
    np.testing.assert_allclose(latents[0, 0], maps.ravel() @ kernel + bias, atol=1e-5)  # float32


@pytest.mark.parametrize("bins_as_channels", [False, True])
def test_a_step_depends_on_what_is_within_its_reach(bins_as_channels):
    autoencoder = make_small((16, 12, 1), bins_as_channels=bins_as_channels)
    rng = np.random.default_rng(0)
    image = rng.random((1, 16, 160, 1), np.float32)
    changed = image.copy()
    changed[:, :, 80] = 1 - changed[:, :, 80]
    step, reach = autoencoder.frames_per_step, autoencoder.reach

    latents, others = autoencoder.encode(image), autoencoder.encode(changed)
    steps = np.flatnonzero(np.abs(latents - others).max(axis=(0, 2)) > 1e-7)
    assert steps.min() >= (80 - reach) // step and steps.max() <= (80 + reach) // step
    images = autoencoder.decoder(latents).numpy()
    latents[:, 20] += 1
    others = autoencoder.decoder(latents).numpy()
    frames = np.flatnonzero(np.abs(images - others).max(axis=(0, 1, 3)) > 1e-7)
    assert frames.min() >= 20 * step - reach and frames.max() < 21 * step + reach
    assert reach < 24  # frames: of kernels of 3 at strides of 2, or the margins would be useless


@pytest.mark.parametrize(
    "shape, conv_filters, n_steps, numbers",
    [
        ((512, 256, 1), None, 16, 128),
        ((256, 64, 2), None, 4, 128),
        ((128, 7, 1), None, 1, 16),
        ((16, 12, 1), (4,), 12, 1),
        ((16, 12, 1), (4, 8, 8), 3, 1),
    ],
)
def test_the_architecture_has_a_number_for_64_cells(shape, conv_filters, n_steps, numbers):
    architecture = choose_architecture(shape, conv_filters=conv_filters)

    autoencoder = Autoencoder(**architecture)

    assert (autoencoder.n_steps, autoencoder.latent_space_dim) == (n_steps, numbers)
    lengths = {len(architecture[f"conv_{name}"]) for name in ("filters", "kernels", "strides")}
    assert lengths == {len(conv_filters or architecture["conv_filters"])}


def test_bins_as_channels_is_a_convolution_over_time():
    autoencoder = Autoencoder((16, 12, 2), (5,), (3,), (1,), 4, bins_as_channels=True)
    image = make_images(1, (16, 12, 2))
    conv = autoencoder.encoder.get_layer("conv_0")
    kernel, bias = conv.get_weights()

    (maps,) = keras.Model(autoencoder.encoder.input, conv.output)(image).numpy()

    # The oracle: a sum over all bins and channels of three neighbouring frames.
    padded = np.pad(image[0], [(0, 0), (1, 1), (0, 0)])
    spectra = kernel.reshape(3, 16, 2, 5)
    expected = sum(np.einsum("htc,hcf->tf", padded[:, k : k + 12], spectra[k]) for k in range(3))
    np.testing.assert_allclose(maps[0], expected + bias, atol=1e-5)  # float32


@pytest.mark.slow
def test_training_lowers_the_loss_of_others_and_half_precision_comes_close_to_float32():
    images, held_out, losses = make_images(64), make_images(16, seed=1), {}
    for precision in ("float32", "bfloat16", "float16"):
        autoencoder, dtypes = make_small(precision=precision), []
        start = np.square(autoencoder.reconstruct(held_out)[0] - held_out).mean()
        check = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, layers=autoencoder.encoder.layers, dtypes=dtypes: (
                dtypes.append({layer.compute_dtype for layer in layers})
            )
        )
        autoencoder.compile(1e-2)
        autoencoder.train(images, 16, 20, x_validation=held_out, callbacks=[check])
        losses[precision] = np.square(autoencoder.reconstruct(held_out)[0] - held_out).mean()
        assert dtypes == [{precision}] * 20
        assert {layer.compute_dtype for layer in autoencoder.encoder.layers} == {"float32"}

    assert losses["float32"] < 0.5 * start  # the training means something
    assert max(losses["bfloat16"], losses["float16"]) < 1.2 * losses["float32"]


def test_normalisations_learn_from_a_random_start(eager):
    autoencoder = make_small()
    norm = autoencoder.encoder.get_layer("norm_0")
    before = norm.get_weights()

    autoencoder.compile(1e-3)
    autoencoder.train(make_images(16), 16, 1)

    assert all((old != new).any() for old, new in zip(before, norm.get_weights(), strict=True))


def test_summary_shows_every_layer_with_its_shape(capsys):
    make_small().summary()

    printed = capsys.readouterr().out
    assert all(name in printed for name in ("conv_1", "latent", "deconv_0", "(None, 4, None, 12)"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((16, 12, 1), (4, 8), (3,), (2, 2), 4), "one entry per layer"),
        (((16, 12, 1), (), (), (), 4), "one entry per layer"),
        (((16, 12), (4,), (3,), (2,), 4), "input_shape must hold 3 integers"),
        (((16, 12, 1), (0,), (3,), (2,), 4), "conv_filters must hold"),
        (((16, 12, 1), (4,), (3,), (2,), 0), "latent_space_dim must hold"),
        (((16, 0, 1), (4,), (3,), (2,), 4), "input_shape must hold"),
        (((16, 12, 1), (4,), ((3, 3, 3),), (2,), 4), "conv_kernels must hold 2 integers"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Autoencoder(*arguments)


def test_rows_count_as_the_mel_scale_spaces_them():
    edges = librosa.hz_to_mel(np.arange(-0.5, 512) * 21.5, htk=True)

    weights = weigh_rows(512, 21.5)

    assert weights.shape == (512, 1, 1) and weights.mean() == pytest.approx(1, abs=1e-5)
    ratio = weights[:, 0, 0] / np.diff(edges)
    np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-2)
    np.testing.assert_array_equal(weigh_rows(4, 0), np.ones((4, 1, 1)))


def test_the_loss_is_the_weighted_error():
    images = make_images(4)
    autoencoder = make_small(bin_hz=1000)
    autoencoder.compile()

    loss = autoencoder.model.evaluate(images, images, verbose=0)

    found = autoencoder.decoder(autoencoder.encoder(images)).numpy()  # not clipped
    error = (weigh_rows(16, 1000) * np.square(found - images)).mean()
    assert loss == pytest.approx(error, rel=1e-5)
