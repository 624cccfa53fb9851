import json

import numpy as np
import pytest
from conftest import make_images

import autoencoder as autoencoder_module
from autoencoder import Autoencoder, Batches, choose_precision, keras


def make_small(shape=(16, 12, 1), latent_space_dim=4):
    keras.utils.set_random_seed(0)
    return Autoencoder(shape, (6, 12), (3, 3), (2, 2), latent_space_dim)


@pytest.mark.parametrize(
    "shape, strides", [((17, 13, 1), (2, 2)), ((16, 12, 2), (2, 3)), ((9, 40, 1), ((1, 4), (3, 2)))]
)
def test_output_has_the_shape_of_the_input(shape, strides):
    autoencoder = Autoencoder(shape, (4, 8), (5, 3), strides, 3)

    images, latents = autoencoder.reconstruct(make_images(2, shape))

    assert images.shape == (2, *shape) and latents.shape == (2, 3)
    assert images.min() >= 0 and images.max() <= 1


def test_decoder_mirrors_the_encoder():
    autoencoder = make_small((17, 13, 1))

    encoder = [layer.output.shape for layer in autoencoder.encoder.layers if "conv" in layer.name]
    decoder = [layer.input.shape for layer in autoencoder.decoder.layers if "deconv" in layer.name]

    assert encoder[::-1] == decoder


@pytest.mark.parametrize("shape", [(16, 12, 1), (17, 13, 1), (16, 12, 2)])
def test_start_as_pca_equals_pca(shape):
    from sklearn.decomposition import PCA

    images = make_images(40, shape)
    # Enough main filters for every patch: nothing is lost before the bottleneck.
    autoencoder = Autoencoder(shape, (18, 72), (3, 3), (2, 2), 5)
    pca = PCA(5).fit(images.reshape(40, -1))

    autoencoder.start_as_pca(images)
    reconstructed, _ = autoencoder.reconstruct(images)

    oracle = pca.inverse_transform(pca.transform(images.reshape(40, -1))).reshape(images.shape)
    # The starts of BatchNormalization are rounded to float32.
    np.testing.assert_allclose(reconstructed, oracle.clip(0, 1), atol=2e-3)


def test_start_as_pca_works_with_fewer_images_than_latents():
    images = make_images(3)
    autoencoder = Autoencoder((16, 12, 1), (18, 72), (3, 3), (2, 2), 10)

    autoencoder.start_as_pca(images)

    np.testing.assert_allclose(autoencoder.reconstruct(images)[0], images, atol=0.02)


@pytest.mark.parametrize("shape", [(16, 12, 1), (17, 13, 1), (16, 13, 2)])
def test_start_as_pca_takes_kernels_that_span_all_bins(shape):
    from sklearn.decomposition import PCA

    images = make_images(40, shape)
    kernels, strides = ((shape[0], 1), (1, 3)), ((shape[0], 1), (1, 2))
    # Enough main filters for every patch: nothing is lost before the bottleneck.
    autoencoder = Autoencoder(shape, (72, 145), kernels, strides, 5)
    pca = PCA(5).fit(images.reshape(40, -1))

    autoencoder.start_as_pca(images)
    reconstructed, _ = autoencoder.reconstruct(images)

    oracle = pca.inverse_transform(pca.transform(images.reshape(40, -1))).reshape(images.shape)
    np.testing.assert_allclose(reconstructed, oracle.clip(0, 1), atol=2e-3)


def test_every_weight_but_the_normalisations_learns_from_the_pca_start():
    images = make_images(64)
    autoencoder = make_small(latent_space_dim=80)  # more than there are images
    autoencoder.start_as_pca(images)
    before = autoencoder.model.get_weights()

    autoencoder.compile(1e-3)
    autoencoder.train(images, 16, 3)

    # A weight whose gradient is zero at the start, and stays so, is capacity thrown away.
    for variable, start in zip(autoencoder.model.variables, before, strict=True):
        moved = np.mean(variable.numpy() != start)
        assert (moved == 0) if "norm" in variable.path else (moved > 0.8), variable.path


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_in_half_precision_comes_close_to_float32(precision):
    images = make_images(64)
    errors = {}
    for name in ("float32", precision):
        autoencoder = make_small()
        autoencoder.start_as_pca(images)
        start = np.square(autoencoder.reconstruct(images)[0] - images).mean()
        autoencoder.set_precision(name)
        assert {layer.compute_dtype for layer in autoencoder.encoder.layers} == {name}
        autoencoder.compile(1e-3)
        autoencoder.train(images, 16, 20)
        autoencoder.set_precision("float32")
        errors[name] = np.square(autoencoder.reconstruct(images)[0] - images).mean()

    # These smooth images come back to 1e-5; bfloat16 alone rounds by about as much.
    assert errors[precision] < min(start, errors["float32"] + 1e-4)


def test_set_precision_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, float16"):
        make_small().set_precision("int8")


@pytest.mark.parametrize("limit, expected", [(0, "float32"), (np.inf, "bfloat16")])
def test_choose_precision_takes_bfloat16_below_its_share_of_the_time(monkeypatch, limit, expected):
    monkeypatch.setattr(autoencoder_module, "BFLOAT16_TIME", limit)

    assert choose_precision() == expected


def test_training_lowers_the_error_below_its_start():
    images = make_images(64)
    autoencoder = make_small()
    autoencoder.start_as_pca(images)
    start = np.square(autoencoder.reconstruct(images)[0] - images).mean()

    autoencoder.compile(2e-3)
    autoencoder.train(images, 16, 40)

    assert np.square(autoencoder.reconstruct(images)[0] - images).mean() < 0.8 * start


def draw_indices(batches):
    return [images.tolist() for images, _ in (batches[index] for index in range(len(batches)))]


def test_batches_hold_every_item_once_an_epoch_in_a_new_order():
    batches = Batches(lambda indices, rng: indices, 7, 3, seed=1)

    first = draw_indices(batches)
    batches.start_epoch(1)
    second = draw_indices(batches)

    assert [len(batch) for batch in first] == [3, 3, 1]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == [*range(7)]
    assert first != second


def test_batches_follow_from_the_seed_and_the_epoch_alone():
    def draw(indices, rng):
        return indices + rng.random(len(indices))

    first, again, other = (Batches(draw, 7, 3, seed) for seed in (1, 1, 2))
    draw_indices(first)  # an epoch more than the others
    for batches in (first, again, other):
        batches.start_epoch(1)

    assert draw_indices(first) == draw_indices(again) != draw_indices(other)


def test_batches_without_a_seed_keep_the_order_and_are_shared_evenly():
    shares = [
        draw_indices(
            Batches(lambda indices, rng: indices, 7, 3, seed=None, share=(index, 2), multiple=2)
        )
        for index in range(2)
    ]

    # Batches of 3 are rounded up to 4, the last one to 4 with the first item.
    assert shares == [[[0, 2], [4, 6]], [[1, 3], [5, 0]]]


def test_save_and_load_give_the_same_images(tmp_path):
    images = make_images()
    autoencoder = make_small()
    autoencoder.compile(1e-3)
    autoencoder.train(images, 8, 1)

    autoencoder.save(tmp_path)
    loaded = Autoencoder.load(tmp_path)

    assert loaded.parameters == autoencoder.parameters
    np.testing.assert_array_equal(loaded.reconstruct(images)[0], autoencoder.reconstruct(images)[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model.weights.h5", "parameters.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((16, 12, 1), (4, 8), (3,), (2, 2), 4), "one entry a layer"),
        (((16, 12, 1), (), (), (), 4), "one entry a layer"),
        (((16, 12), (4,), (3,), (2,), 4), "input_shape must be"),
        (((16, 12, 1), (0,), (3,), (2,), 4), "conv_filters must hold"),
        (((16, 12, 1), (4,), (3,), (2,), 0), "latent_space_dim must hold"),
        (((16, 0, 1), (4,), (3,), (2,), 4), "input_shape must hold"),
        (((16, 12, 1), (4,), ((3, 3, 3),), (2,), 4), "conv_kernels must hold integers or pairs"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(*arguments)


def test_load_names_the_command_that_makes_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run train\.py"):
        Autoencoder.load(tmp_path)


def test_load_refuses_weights_of_another_shape(tmp_path):
    make_small().save(tmp_path)
    parameters = json.loads((tmp_path / "parameters.json").read_text())
    parameters["latent_space_dim"] = 7
    (tmp_path / "parameters.json").write_text(json.dumps(parameters))

    with pytest.raises(ValueError, match="does not fit"):
        Autoencoder.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"rubbish"])
def test_load_refuses_damaged_weights(tmp_path, data):
    make_small().save(tmp_path)
    (tmp_path / "model.weights.h5").write_bytes(data)

    with pytest.raises(ValueError, match="damaged"):
        Autoencoder.load(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"filters": 3}'])
def test_load_refuses_damaged_parameters(tmp_path, text):
    make_small().save(tmp_path)
    (tmp_path / "parameters.json").write_text(text)

    with pytest.raises(ValueError, match="no set of parameters"):
        Autoencoder.load(tmp_path)
