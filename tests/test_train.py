import numpy as np
import pytest

import preprocess
import train
from helpers import make_images, read_csv
from support import dataset
from support.errors import UserError
from training.callbacks import make_callbacks
from training.data import Pieces, Windows
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

    with pytest.raises(UserError, match=r"z\.wav\.000\.npy must have the first one's shape"):
        train.load_fsdd(spectrograms, None)


def test_load_fsdd_names_a_damaged_file(spectrograms):
    (spectrograms / "c.wav.001.npy").write_bytes(b"\x93NUMPY rubbish")

    with pytest.raises(UserError, match=r"c\.wav\.001\.npy is damaged"):
        train.load_fsdd(spectrograms)


def test_load_fsdd_without_features_names_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run preprocess\.py first"):
        train.load_fsdd(tmp_path)


def test_pieces_are_used_like_the_array_of_them(spectrograms):
    keys = dataset.list_keys(spectrograms)
    pieces = Pieces(spectrograms, (8, 20), keys)
    images = train.load_fsdd(spectrograms, (8, 20))

    assert (pieces.shape, len(pieces), pieces.nbytes) == (images.shape, len(images), images.nbytes)
    for index in (2, slice(1, 5, 2), slice(4, 99), np.array([3, 0, 3])):
        np.testing.assert_array_equal(pieces[index], images[index])


def test_split_never_cuts_a_track():
    keys = [f"g/t{track}.wav.{segment:03d}.npy" for track in range(20) for segment in range(7)]

    parts = split_by_track(keys, 0.1, seed=3)

    assert len(parts["valid"]) == 14 and parts["test"] == []
    assert sorted(parts["train"] + parts["valid"]) == sorted(keys)
    assert not {*map(dataset.get_track, parts["train"])} & {*map(dataset.get_track, parts["valid"])}


def test_split_follows_the_seed():
    keys = [f"t{track}.wav.000.npy" for track in range(30)]

    first, again, other = (split_by_track(keys, 0.2, seed) for seed in (0, 0, 1))

    assert first == again != other


def test_split_leaves_one_track_to_train_on():
    assert split_by_track(["a.wav.000.npy", "a.wav.001.npy"], 0.5, seed=0)["valid"] == []


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
    return Windows(images, keys, min_max_values, top_db=80)


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
    [
        ((512, 256, 1), None, 16),
        ((256, 64, 2), None, 16),
        ((128, 7, 1), None, 4),
        ((16, 12, 1), (4,), 12),
        ((16, 12, 1), (4, 8, 8), 3),
    ],
)
def test_the_architecture_leaves_few_frames(shape, conv_filters, n_frames):
    architecture = train.choose_architecture(shape, conv_filters=conv_filters)

    assert architecture["bins_as_channels"] and architecture["conv_kernels"][0] == 1
    lengths = {len(architecture[f"conv_{name}"]) for name in ("filters", "kernels", "strides")}
    assert lengths == {len(conv_filters or architecture["conv_filters"])}
    width = shape[1]
    for stride in architecture["conv_strides"]:
        width = -(-width // stride)
    assert width == n_frames


def test_the_architecture_of_the_default_shape():
    filters = train.choose_architecture((512, 256, 1))["conv_filters"]

    assert filters == (160, 320, 320, 320, 320)


def test_windows_are_stretched_in_time_and_in_frequency():
    levels = np.add.outer(np.arange(200, dtype=np.float32), np.arange(100, dtype=np.float32))
    image = preprocess.MinMaxNormaliser(0, 1).normalise(levels)[np.newaxis, ..., np.newaxis]
    key = "a.wav.000.npy"
    windows = Windows(image, [key], {key: {"min": 0, "max": 298}}, top_db=999)

    drawn = windows.draw(np.zeros(30, int), np.random.default_rng(0), max_stretch=0.1)[..., 0]

    # The slope over the bins, relative to that over the frames, tells the two stretches' ratio.
    slopes = (drawn[:, 150, 50] - drawn[:, 50, 50]) / (drawn[:, 50, 80] - drawn[:, 50, 30]) / 2
    assert 0.8 < slopes.min() < 0.95 and 1.05 < slopes.max() < 1.25


def choose_small(images, *conv_filters, latent_space_dim):
    return train.choose_architecture(
        images.shape[1:], conv_filters=conv_filters, latent_space_dim=latent_space_dim
    )


@pytest.mark.slow
def test_train_learns_from_windows():
    images = make_images(64)
    keys = [f"{index:02d}.wav.000.npy" for index in range(64)]
    windows = Windows(images, keys, dict.fromkeys(keys, {"min": -60.0, "max": 0.0}), top_db=80)
    drawn = windows.draw(np.arange(64), np.random.default_rng(1))
    architecture = choose_small(images, 16, 32, latent_space_dim=8)
    losses = []

    for learning_rate, epochs in ((1e-9, 1), (5e-3, 40)):  # the PCA start, and trained
        autoencoder = train.train(windows, learning_rate, 16, epochs, architecture=architecture)
        losses.append(np.square(autoencoder.reconstruct(drawn)[0] - drawn).mean())

    assert losses[1] < 0.75 * losses[0]


@pytest.mark.slow
def test_train_keeps_the_best_weights_and_the_history(tmp_path, spectrograms, make_settings):
    from autoencoder import Autoencoder

    x_train = train.load_fsdd(spectrograms, None)
    callbacks = make_callbacks(
        model_folder=tmp_path / "model", run={"start": "pca"}, settings=make_settings()
    )

    autoencoder = train.train(
        x_train,
        1e-2,
        2,
        6,
        x_validation=x_train[:2],
        architecture=choose_small(x_train, 4, 8, latent_space_dim=3),
        callbacks=callbacks,
    )

    rows = read_csv(tmp_path / "model" / "history.csv")
    best = min(float(row["val_loss"]) for row in rows)
    images = autoencoder.decoder(autoencoder.encoder(x_train[:2])).numpy()  # not clipped
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert float(rows[-1]["val_loss"]) > best  # so that the best are not the last
    # Float32 means in another order.
    assert np.square(images - x_train[:2]).mean() == pytest.approx(best, rel=1e-4)
    np.testing.assert_array_equal(
        Autoencoder.load(tmp_path / "model").reconstruct(x_train)[0],
        autoencoder.reconstruct(x_train)[0],
    )


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pca", "random"])
def test_train_is_the_same_for_the_same_seed(spectrograms, start):
    x_train = train.load_fsdd(spectrograms, None)
    architecture = choose_small(x_train, 4, 4, latent_space_dim=2)

    first, again, other = (
        train.train(x_train, 1e-3, 2, 1, architecture=architecture, start=start, seed=seed)
        for seed in (0, 0, 1)
    )

    # Threads may sum in another order.
    np.testing.assert_allclose(first.encode(x_train), again.encode(x_train), atol=1e-6)
    assert np.abs(first.encode(x_train) - other.encode(x_train)).max() > 1e-4
    # Only a start from PCA freezes the normalisations.
    assert first.encoder.get_layer("norm_1").trainable == (start == "random")


def test_train_stops_at_nan(spectrograms):
    x_train = train.load_fsdd(spectrograms, None)
    architecture = choose_small(x_train, 4, latent_space_dim=2)

    with pytest.raises(UserError, match="training loss became .*lower --learning_rate"):
        train.train(x_train, 1e30, 2, 9, architecture=architecture)


def test_patience_stops_a_run_that_gets_no_better(spectrograms, capsys):
    x_train = train.load_fsdd(spectrograms, None)
    callbacks = make_callbacks(patience=3)
    history = callbacks[1]

    train.train(
        x_train,
        1e-12,
        2,
        50,
        architecture=choose_small(x_train, 4, latent_space_dim=2),
        callbacks=callbacks,
    )

    assert len(history.rows) < 50 and history.count_epochs_since_best() == 3
    assert "validation loss" not in capsys.readouterr().out  # nothing is held out
