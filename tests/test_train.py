from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import preprocess
import train
from generation.prior import TrainingPieces
from helpers import make_images
from support import dataset
from support.bands import extract_bands
from support.errors import UserError
from training import outputs
from training.callbacks import make_callbacks, plot_history
from training.checkpoint import Checkpoint, count_epochs_since_best, load_checkpoint
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


@pytest.mark.parametrize("free_bytes, is_streamed", [(9000, True), (9500, False)])
def test_pieces_are_streamed_if_they_need_half_of_the_free_memory(
    spectrograms, monkeypatch, free_bytes, is_streamed
):
    pieces = Pieces(spectrograms, None, dataset.list_keys(spectrograms))  # 6 * 16 * 12 * 4 bytes
    memory = SimpleNamespace(available=free_bytes)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    assert pieces.needs_streaming() == is_streamed


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


def test_split_rounds_the_tracks_to_validate_on_up():
    keys = [f"t{track}.wav.000.npy" for track in range(21)]

    assert len(split_by_track(keys, 0.1, seed=0)["valid"]) == 3


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


def test_windows_have_their_floor_below_their_own_peak(ramps):
    ramps.top_db = 5

    windows = ramps.draw(np.zeros(20, int), np.random.default_rng(0))

    # Of ten frames, 1 dB apart, those 5 dB or more below the last one lie on the floor.
    expected = np.array([0, 0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1])
    expected = np.broadcast_to(expected[:, None], windows.shape)
    np.testing.assert_allclose(windows, expected, atol=1e-5)  # float32


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
@pytest.mark.parametrize("learning_rate, is_start_best", [(1e-2, False), (1.0, True)])
def test_train_keeps_the_best_weights_even_those_of_the_start(
    spectrograms, learning_rate, is_start_best
):
    x_train = train.load_fsdd(spectrograms, None)
    callbacks = make_callbacks()

    autoencoder = train.train(
        x_train,
        learning_rate,
        2,
        6,
        x_validation=x_train[:2],
        architecture=choose_small(x_train, 4, 8, latent_space_dim=3),
        callbacks=callbacks,
    )

    rows = callbacks[1].rows
    losses = [row["val_loss"] for row in rows]
    images = autoencoder.decoder(autoencoder.encoder(x_train[:2])).numpy()  # not clipped
    assert [row["epoch"] for row in rows] == [*range(7)]
    assert losses[-1] > min(losses)  # so that the best are not the last
    assert (np.argmin(losses) == 0) == is_start_best
    # Float32 means in another order.
    assert np.square(images - x_train[:2]).mean() == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pca", "random"])
def test_train_is_the_same_for_the_same_seed(spectrograms, start):
    x_train = train.load_fsdd(spectrograms, None)
    architecture = choose_small(x_train, 4, 4, latent_space_dim=2)

    first, again, other = (
        train.train(x_train, 5e-3, 2, 3, architecture=architecture, start=start, seed=seed)
        for seed in (0, 0, 1)
    )

    # Threads may sum in another order.
    np.testing.assert_allclose(first.encode(x_train), again.encode(x_train), atol=1e-6)
    assert np.abs(first.encode(x_train) - other.encode(x_train)).max() > 1e-4
    # Only a start from PCA freezes the normalisations.
    assert first.encoder.get_layer("norm_1").trainable == (start == "random")


def test_the_learning_rate_climbs_to_its_peak_and_falls_along_a_cosine():
    schedule = train.make_schedule(2.0, 100)

    rates = [float(schedule(step)) for step in (0, 1, 5, 52.5, 100)]

    # 5 steps of warm-up, then half a period over 95 steps.
    np.testing.assert_allclose(rates, [0, 0.4, 2, 1, 0], atol=1e-6)  # float32


def test_the_learning_rate_is_zero_when_training_ends(spectrograms):
    x_train = train.load_fsdd(spectrograms, None)
    callbacks = make_callbacks()

    train.train(
        x_train,
        1e-3,
        2,
        4,
        architecture=choose_small(x_train, 4, latent_space_dim=2),
        callbacks=callbacks,
    )

    rates = [row["learning_rate"] for row in callbacks[1].rows]
    assert max(rates) > 5e-4 and rates[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("n_weights, rate", [(1000, 1e-3), (2_250_000, 1e-3), (25_000_000, 3e-4)])
def test_large_networks_learn_at_a_lower_rate(n_weights, rate):
    assert train.choose_learning_rate(n_weights) == pytest.approx(rate)


@pytest.mark.parametrize("n_pieces, epochs", [(1, 100), (500, 100), (9297, 6), (10**6, 2)])
def test_large_sets_are_seen_fewer_times(n_pieces, epochs):
    assert train.choose_epochs((n_pieces, 512, 256, 1)) == epochs
    assert train.choose_epochs((4 * n_pieces, 256, 128, 1)) == epochs


def test_force_begins_anew_where_a_run_was_interrupted(tmp_path):
    row = {"epoch": 0, "loss": 0.5, "val_loss": 0.25, "learning_rate": 0.0}
    Checkpoint({"seed": 0}, [row], [], []).save(tmp_path)

    assert load_checkpoint(tmp_path, resume=False, force=True) is None


def test_pieces_are_encoded_with_what_follows_them(tmp_path):
    keys = ["calm/a.wav.000.npy", "calm/a.wav.001.npy", "b.wav.000.npy"]
    images = np.random.default_rng(0).random((3, 16, 12, 1)).astype(np.float32)
    images[:, 0, 5:7] = [[[0], [1]]] * 3  # every window has the whole range
    ranges = {
        key: {"min": -80.0, "max": peak} for key, peak in zip(keys, (0.0, 0.0, 2.0), strict=True)
    }
    windows = Windows(images, keys, ranges, 80.0)

    encode = lambda x: x.mean(axis=(1, 3))  # noqa: E731
    pieces, followers = outputs.encode_pieces(encode, windows, keys, ranges, 22050)
    pieces.save(tmp_path)
    pieces = TrainingPieces.load(tmp_path)

    np.testing.assert_allclose(pieces.latents, images.mean(axis=(1, 3)), rtol=1e-6)
    np.testing.assert_array_equal(pieces.ranges, [[-80, 0], [-80, 0], [-80, 2]])
    assert (pieces.keys, pieces.genres.tolist()) == (keys, ["calm", "calm", ""])
    bands = extract_bands(images, 22050)
    np.testing.assert_allclose(pieces.bands / 255, bands, atol=0.5 / 255 + 1e-6)
    assert followers.exist.tolist() == [True, False, False]
    follower = np.concatenate([images[0, :, 6:], images[1, :, :6]], axis=1)
    np.testing.assert_allclose(followers.latents[0], follower.mean(axis=(0, 2)), atol=0.02)
    assert followers.ranges[0] == pytest.approx([-80, 0], abs=2)
    assert not followers.latents[1:].any()


def test_the_fingerprint_of_a_run_tells_its_pieces_their_parts_and_their_ranges():
    ranges = {key: {"min": -80.0, "max": 0.0} for key in "abc"}

    fingerprints = {
        outputs.make_fingerprint({"train": [*trained], "valid": [*valid]}, values)
        for trained, valid, values in (
            ("ab", "c", ranges),
            ("a", "bc", ranges),
            ("ab", "", ranges),
            ("ab", "c", ranges | {"c": {"min": -80.0, "max": 1.0}}),
        )
    }

    assert len(fingerprints) == 4


def test_train_stops_at_nan(spectrograms):
    x_train = train.load_fsdd(spectrograms, None)
    architecture = choose_small(x_train, 4, latent_space_dim=2)

    with pytest.raises(UserError, match="training loss became .*lower --learning_rate"):
        train.train(x_train, 1e30, 2, 9, architecture=architecture)


def test_patience_counts_from_the_best_epoch_or_the_peak_of_the_rate():
    rows = [
        {"loss": 1.0, "val_loss": loss, "learning_rate": rate}
        for loss, rate in ((0.3, 0.0), (0.4, 0.5), (0.5, 1.0), (0.6, 0.9), (0.2, 0.8), (0.4, 0.7))
    ]

    assert [count_epochs_since_best(rows[:n]) for n in range(1, 7)] == [0, 0, 0, 1, 0, 1]


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

    assert len(history.rows) < 50 and count_epochs_since_best(history.rows) == 3
    assert "validation loss" not in capsys.readouterr().out  # nothing is held out


@pytest.mark.filterwarnings("error")
def test_history_of_silence_alone_is_drawn_without_a_warning(tmp_path):
    row = {"epoch": 1, "loss": 0.0, "val_loss": 0.0, "learning_rate": 1e-3}

    plot_history(tmp_path / "history.png", [row])

    assert (tmp_path / "history.png").is_file()
