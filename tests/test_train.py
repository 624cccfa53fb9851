import csv

import numpy as np
import pytest
from conftest import make_images

import preprocess
import train
from support import dataset
from training.pieces import Windows
from training.splits import split_by_track


def test_load_fsdd_adds_the_channel_and_keeps_the_order(spectrograms):
    x_train = train.load_fsdd(spectrograms, None)

    assert x_train.shape == (6, 16, 12, 1) and x_train.dtype == np.float32
    first = np.load(spectrograms / "a" / "x.wav.000.npy")
    np.testing.assert_array_equal(x_train[0, ..., 0], first)


def test_load_fsdd_resizes_to_the_target(spectrograms):
    assert train.load_fsdd(spectrograms, (8, 20)).shape == (6, 8, 20, 1)


def test_load_fsdd_refuses_mixed_shapes(spectrograms):
    np.save(spectrograms / "z.wav.000.npy", np.zeros((16, 13), np.float32))

    with pytest.raises(ValueError, match=r"z\.wav\.000\.npy must have the first one's shape"):
        train.load_fsdd(spectrograms, None)


def test_load_fsdd_names_a_damaged_file(spectrograms):
    (spectrograms / "c.wav.001.npy").write_bytes(b"\x93NUMPY rubbish")

    with pytest.raises(ValueError, match=r"c\.wav\.001\.npy is damaged"):
        train.load_fsdd(spectrograms)


def test_load_fsdd_without_features_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run preprocess\.py first"):
        train.load_fsdd(tmp_path)


def test_split_never_cuts_a_track():
    keys = [f"g/t{track}.wav.{segment:03d}.npy" for track in range(20) for segment in range(7)]

    held = split_by_track(keys, 0.1, seed=3)

    assert held.sum() == 14
    held_tracks = {
        dataset.get_track(key) for key, is_held in zip(keys, held, strict=True) if is_held
    }
    kept = {dataset.get_track(key) for key, is_held in zip(keys, held, strict=True) if not is_held}
    assert not held_tracks & kept


def test_split_follows_the_seed():
    keys = [f"t{track}.wav.000.npy" for track in range(30)]

    first, again, other = (split_by_track(keys, 0.2, seed) for seed in (0, 0, 1))

    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_split_leaves_one_track_to_train_on():
    assert not split_by_track(["a.wav.000.npy", "a.wav.001.npy"], 0.5, seed=0).any()


@pytest.fixture
def ramps():
    """Windows over three pieces, the first two of one track; frame f lies at f dB, 10 a piece."""
    levels = np.arange(30, dtype=np.float32).reshape(3, 1, 10, 1).repeat(4, axis=1)
    keys = ["a.wav.000.npy", "a.wav.001.npy", "b.wav.000.npy"]
    min_max_values = {
        key: {"min": float(level.min()), "max": float(level.max())}
        for key, level in zip(keys, levels, strict=True)
    }
    normaliser = preprocess.MinMaxNormaliser(0, 1)
    images = np.stack([normaliser.normalise(level) for level in levels])
    return Windows(images, keys, min_max_values)


def test_windows_run_on_into_the_next_piece_of_the_track(ramps):
    windows = ramps.draw(np.zeros(50, int), np.random.default_rng(0))

    # Any ten consecutive frames of the ramp are the same ramp, once normalised.
    assert windows.shape == (50, 4, 10, 1)
    expected = np.broadcast_to(np.linspace(0, 1, 10)[:, None], windows.shape)
    np.testing.assert_allclose(windows, expected, atol=1e-5)  # float32


def test_windows_of_a_last_piece_move_against_the_floor(ramps):
    windows = ramps.draw(np.full(50, 1), np.random.default_rng(0))

    starts = {int((window[0, :, 0] == 0).sum()) for window in windows}
    assert starts == {1, 2, 3}  # the ramp's own minimum, and up to EDGE_FRAMES of floor


@pytest.mark.parametrize(
    "shape, conv_filters, n_frames",
    [((512, 256, 1), None, 16), ((256, 64, 2), None, 16), ((128, 7, 1), None, 4),
     ((16, 12, 1), (4,), 12), ((16, 12, 1), (4, 8, 8), 3)],
)  # fmt: skip
def test_choose_layers_spans_all_bins_and_leaves_few_frames(shape, conv_filters, n_frames):
    filters, kernels, strides = train.choose_layers(shape, conv_filters)

    assert kernels[0] == strides[0] == (shape[0], 1)
    assert len(filters) == len(kernels) == len(strides) == len(conv_filters or filters)
    width = shape[1]
    for _, stride in strides:
        width = -(-width // stride)
    assert width == n_frames


def test_choose_layers_for_the_default_shape():
    assert train.choose_layers((512, 256, 1))[0] == (160, 320, 320, 320, 320)


def test_windows_are_stretched_in_time_and_in_frequency():
    levels = np.add.outer(np.arange(200, dtype=np.float32), np.arange(100, dtype=np.float32))
    image = preprocess.MinMaxNormaliser(0, 1).normalise(levels)[np.newaxis, ..., np.newaxis]
    key = "a.wav.000.npy"
    windows = Windows(image, [key], {key: {"min": 0, "max": 298}}, top_db=999)

    drawn = windows.draw(np.zeros(30, int), np.random.default_rng(0), max_stretch=0.1)[..., 0]

    # The slope over the bins, relative to that over the frames, tells the two stretches' ratio.
    slopes = (drawn[:, 150, 50] - drawn[:, 50, 50]) / (drawn[:, 50, 80] - drawn[:, 50, 30]) / 2
    assert 0.8 < slopes.min() < 0.95 and 1.05 < slopes.max() < 1.25


def test_train_learns_from_windows():
    images = make_images(64)
    keys = [f"{index:02d}.wav.000.npy" for index in range(64)]
    windows = Windows(images, keys, dict.fromkeys(keys, {"min": -60.0, "max": 0.0}))
    drawn = windows.draw(np.arange(64), np.random.default_rng(1))
    errors = []

    for learning_rate in (1e-9, 5e-3):  # the PCA start, and trained
        autoencoder = train.train(
            images, learning_rate, 16, 40, windows=windows, conv_filters=(16, 32),
            latent_space_dim=8, precision="float32",
        )  # fmt: skip
        errors.append(np.square(autoencoder.reconstruct(drawn)[0] - drawn).mean())

    assert errors[1] < 0.75 * errors[0]


def test_train_keeps_the_best_weights_and_the_history(tmp_path, spectrograms):
    from autoencoder import Autoencoder

    x_train = train.load_fsdd(spectrograms, None)

    autoencoder = train.train(
        x_train, 1e-3, 2, 3, x_validation=x_train[:2], conv_filters=(4, 8), latent_space_dim=3,
        precision="float32", model_folder=tmp_path / "model",
    )  # fmt: skip

    with open(tmp_path / "model" / "history.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    best = min(float(row["val_loss"]) for row in rows)
    reached = np.square(
        autoencoder.decoder(autoencoder.encoder(x_train[:2])).numpy() - x_train[:2]
    ).mean()
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert reached == pytest.approx(best, rel=1e-4)  # float32 means in another order
    np.testing.assert_array_equal(
        Autoencoder.load(tmp_path / "model").reconstruct(x_train)[0],
        autoencoder.reconstruct(x_train)[0],
    )


def test_train_is_the_same_for_the_same_seed(spectrograms):
    x_train = train.load_fsdd(spectrograms, None)

    first, again = (
        train.train(
            x_train, 1e-3, 2, 2, conv_filters=(4,), latent_space_dim=2, precision="float32"
        ).encode(x_train)
        for _ in range(2)
    )

    np.testing.assert_allclose(first, again, atol=1e-6)  # threads may sum in another order


def test_train_stops_at_nan(spectrograms):
    x_train = train.load_fsdd(spectrograms, None)

    with pytest.raises(ValueError, match="training error became .*lower --learning_rate"):
        train.train(x_train, 1e30, 2, 9, conv_filters=(4,), latent_space_dim=2)
