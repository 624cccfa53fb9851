import tempfile
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

import train
from autoencoder import Autoencoder, choose_architecture, keras
from helpers import make_images, mount
from support import dataset
from support.bands import extract_bands
from support.errors import UserError
from support.keras import make_schedule
from support.tracks import TrainingTracks
from training import outputs
from training.callbacks import make_callbacks, plot_history
from training.checkpoint import Checkpoint, count_epochs_since_best, load_checkpoint
from training.splits import split_by_track
from training.windows import Windows


def test_load_fsdd_adds_the_channel_and_keeps_the_order(spectrograms):
    x_train = train.load_fsdd(spectrograms, None)

    assert x_train.shape == (6, 16, 12, 1) and x_train.dtype == np.float16
    first = np.load(spectrograms / "a" / "x.wav.000.npy")
    np.testing.assert_allclose(x_train[0, ..., 0], first, atol=5e-4)  # float16
    assert train.load_fsdd(spectrograms, (8, 20)).shape == (6, 8, 20, 1)


@pytest.mark.parametrize("free_bytes, is_mapped", [(4500, True), (5000, False)])
def test_what_takes_half_of_the_free_memory_is_mapped_from_a_file(
    spectrograms, monkeypatch, free_bytes, is_mapped
):
    expected = train.load_fsdd(spectrograms)  # 6 * 16 * 12 * 2 bytes
    memory = SimpleNamespace(available=free_bytes)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    x_train = train.load_fsdd(spectrograms)

    assert isinstance(x_train, np.memmap) == is_mapped
    np.testing.assert_array_equal(x_train, expected)


def test_split_never_cuts_a_track():
    keys = [f"g/t{track}.wav.{segment:03d}.npy" for track in range(20) for segment in range(7)]

    parts = split_by_track(keys, 0.1, seed=3)

    assert len(parts["valid"]) == 14 and parts["test"] == []
    assert sorted(parts["train"] + parts["valid"]) == sorted(keys)
    assert not {*map(dataset.get_track, parts["train"])} & {*map(dataset.get_track, parts["valid"])}
    assert parts == split_by_track(keys, 0.1, seed=3) != split_by_track(keys, 0.1, seed=1)


def make_keys(sizes):
    """Keys of tracks that have so many pieces."""
    return [f"{track}.{i:03d}.npy" for track, size in sizes.items() for i in range(size)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "sizes, least, most",
    [
        ({"mix.wav": 1200} | {f"{i}.wav": 60 for i in range(4)}, 120, 120),
        ({f"{i}.wav": 1 for i in range(21)}, 2, 2),
        ({f"{i}.wav": 9 for i in range(3)}, 9, 9),  # a third, but there is none without one
        ({f"{i}.wav": i for i in range(1, 60)}, 155, 205),
        ({"a.wav": 3, "b.wav": 13, "c.wav": 84}, 3, 13),  # both would be more than half as much
    ],
)
def test_a_tenth_of_the_pieces_is_held_out(sizes, least, most, seed):
    assert least <= len(split_by_track(make_keys(sizes), 0.1, seed)["valid"]) <= most


@pytest.mark.parametrize("seed", range(5))
def test_each_genre_is_trained_on_and_is_held_out_where_there_is_room(seed):
    sizes = {f"big/{i}.wav": 10 for i in range(30)} | {"one/0.wav": 10}
    sizes |= {f"small{genre}/{i}.wav": 10 for genre in range(2) for i in range(2)}

    parts = split_by_track(make_keys(sizes), 0.1, seed)

    genres = [{dataset.get_genre(key) for key in parts[part]} for part in ("train", "valid")]
    assert genres == [{"big", "small0", "small1", "one"}, {"big", "small0", "small1"}]


def test_what_is_one_recording_is_trained_on():
    keys = ["a.mp3.000.npy", "a.wav.000.npy", "a.wav.001.npy"]

    copies = split_by_track(keys, 0.5, seed=0, twins=[["a.mp3", "a.wav"]])

    assert copies == {"train": keys, "valid": [], "test": []}
    assert split_by_track(keys[1:], 0.5, seed=0)["valid"] == []


@pytest.mark.parametrize("seed", range(5))
def test_a_large_group_of_twins_is_no_likelier_to_be_held_out(seed):
    sizes = {f"{i}.wav": 1 for i in range(100)}
    twins = [[f"{i}.wav" for i in range(60)]]

    valid = split_by_track(make_keys(sizes), 0.1, seed, twins)["valid"]

    assert len(valid) == 10 and not {*map(dataset.get_track, valid)} & {*twins[0]}


def choose_small(images, *conv_filters, latent_space_dim):
    return choose_architecture(
        images.shape[1:], conv_filters=conv_filters, latent_space_dim=latent_space_dim
    )


@pytest.mark.slow
def test_train_learns_from_windows():
    images = make_images(64)
    windows = Windows(images, batch_size=16, seed=0)
    drawn = windows.draw(64, seed=1)
    architecture = choose_small(images, 16, 32, latent_space_dim=8)
    start = Autoencoder(**architecture)
    train.set_start(start, windows, "pca", 0)

    trained = train.train(windows, 5e-3, 16, 20, architecture=architecture)

    losses = [np.square(each.reconstruct(drawn)[0] - drawn).mean() for each in (start, trained)]
    assert losses[1] < 0.75 * losses[0]


class Spoil(keras.callbacks.Callback):
    """Makes the last of six epochs worse than the others."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 5:
            latent = self.autoencoder.encoder.get_layer("latent")
            latent.set_weights([3 * each for each in latent.get_weights()])


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate, is_start_best", [(1e-2, False), (1.0, True)])
def test_train_keeps_the_best_weights_even_those_of_the_start(
    spectrograms, eager, learning_rate, is_start_best
):
    x_train = train.load_fsdd(spectrograms, None)
    callbacks = [*make_callbacks(), Spoil()]

    autoencoder = train.train(
        x_train,
        learning_rate,
        2,
        6,
        x_validation=x_train[:2],
        architecture=choose_small(x_train, 4, 8, latent_space_dim=3),
        callbacks=callbacks,
    )

    rows = callbacks[0].rows
    losses, rates = ([row[name] for row in rows] for name in ("val_loss", "learning_rate"))
    images = autoencoder.decoder(autoencoder.encoder(x_train[:2])).numpy()  # not clipped
    assert [row["epoch"] for row in rows] == [*range(7)]
    assert losses[-1] > min(losses)  # so that the best are not the last
    assert (np.argmin(losses) == 0) == is_start_best
    assert max(rates) > learning_rate / 2 and rates[-1] <= 1e-6 * learning_rate
    # Float32 means in another order.
    assert np.square(images - x_train[:2]).mean() == pytest.approx(min(losses), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pca", "random"])
def test_train_is_the_same_for_the_same_seed(spectrograms, eager, start):
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
    schedule = make_schedule(2.0, 100)

    rates = [float(schedule(step)) for step in (0, 1, 5, 52.5, 100)]

    # 5 steps of warm-up, then half a period over 95 steps.
    np.testing.assert_allclose(rates, [0, 0.4, 2, 1, 0], atol=1e-6)  # float32


@pytest.mark.parametrize("n_weights, rate", [(1000, 1e-3), (562_500, 1e-3), (2_250_000, 5e-4)])
def test_large_networks_learn_at_a_lower_rate(n_weights, rate):
    assert train.choose_learning_rate(n_weights) == pytest.approx(rate)


@pytest.mark.parametrize("n_pieces, epochs", [(1, 100), (500, 100), (9297, 20), (10**6, 2)])
def test_large_sets_are_seen_fewer_times(n_pieces, epochs):
    assert train.choose_epochs((n_pieces, 512, 256, 1)) == epochs
    assert train.choose_epochs((4 * n_pieces, 256, 128, 1)) == epochs


def test_force_begins_anew_where_a_run_was_interrupted(tmp_path):
    row = {"epoch": 0, "loss": 0.5, "val_loss": 0.25, "learning_rate": 0.0}
    Checkpoint({"seed": 0}, [row], [], []).save(tmp_path / "checkpoint.npz")

    assert load_checkpoint(tmp_path, resume=False, force=True) is None


def test_training_tracks_are_encoded_whole(tmp_path):
    keys = ["calm/a.wav.000.npy", "calm/a.wav.001.npy", "b.wav.000.npy"]
    images = np.random.default_rng(0).random((3, 16, 12, 1)).astype(np.float16)
    tracks = [*map(dataset.get_track, keys)]
    windows = Windows(images, [(-80, 0), (-80, 0), (-78, 2)], tracks, seed=0)
    autoencoder = Autoencoder((16, 12, 1), (4, 4), (1, 3), (1, 2), 3, bins_as_channels=True)

    encoded, found = outputs.describe_tracks(autoencoder, windows, keys, 22050)
    encoded.save(tmp_path)
    encoded = TrainingTracks.load(tmp_path)

    whole = np.concatenate([images[0], images[1]], axis=1).astype(np.float32)
    latents = [autoencoder.encode(image[np.newaxis])[0] for image in (whole, images[2])]
    for own, expected in zip(found, latents, strict=True):
        np.testing.assert_allclose(own, expected, atol=1e-4)  # float32
    assert encoded.n_steps.tolist() == [6, 3]
    bands = np.concatenate([extract_bands(image, 22050) for image in (whole, images[2])])
    np.testing.assert_allclose(encoded.bands / 255, bands, atol=0.5 / 255 + 1e-4)
    assert encoded.peaks.tolist() == [0, 2]
    assert encoded.tracks.tolist() == ["calm/a.wav", "b.wav"]
    assert encoded.genres.tolist() == ["calm", ""]


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


def test_a_full_disk_is_an_error_before_pieces_are_mapped_on_it(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "MEMORY_SHARE", 0)
    with mount(tmp_path / "small", "size=1m"):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "small"))
        with pytest.raises(OSError, match="No space left"):
            train.make_room((1 << 20, 1))


def test_train_stops_at_nan(spectrograms, eager):
    x_train = train.load_fsdd(spectrograms, None)
    architecture = choose_small(x_train, 4, latent_space_dim=2)

    with pytest.raises(UserError, match="loss of epoch 1 is not finite: lower --learning_rate"):
        train.train(x_train, 1e30, 2, 9, architecture=architecture)


def test_patience_counts_from_the_best_epoch_or_the_peak_of_the_rate():
    losses, rates = (0.3, 0.4, 0.5, 0.6, 0.2, 0.4), (0.0, 0.5, 1.0, 0.9, 0.8, 0.7)
    rows = [
        {"loss": 1.0, "val_loss": loss, "learning_rate": rate}
        for loss, rate in zip(losses, rates, strict=True)
    ]

    assert [count_epochs_since_best(rows[:n]) for n in range(1, 7)] == [0, 0, 0, 0, 0, 1]
    for row, loss in zip(rows[1:], (0.9, 0.8, 0.7, 0.6, 0.5), strict=True):
        row["val_loss"] = loss  # the start is better, but each epoch is better than the one before
    assert count_epochs_since_best(rows) == 0
    for row, loss in zip(rows[1:], losses[1:], strict=True):
        row["val_loss"] = loss
    rows[0]["val_loss"] = 0.1  # a start that is not found again before the rate is low
    rows += [{**rows[-1], "learning_rate": rate} for rate in (0.5, 0.4, 0.3)]
    assert [count_epochs_since_best(rows[:n]) for n in range(1, 10)] == [0] * 7 + [1, 2]
    rows[0]["val_loss"] = 0.9
    assert [count_epochs_since_best(rows[:n]) for n in range(5, 10)] == [0, 1, 2, 3, 4]


def test_patience_stops_a_run_that_gets_no_better():
    history, best, *_ = make_callbacks(patience=3)
    best.set_model(SimpleNamespace(stop_training=False, get_weights=list))

    for epoch in range(5):
        loss, rate = 0.5 if epoch == 1 else 0.6, 1e-3 / (1 + epoch)  # of what is held out: none
        history.rows.append({"loss": loss, "val_loss": np.nan, "learning_rate": rate})
        best.on_epoch_end(epoch)
        assert best.model.stop_training == (epoch == 4)


@pytest.mark.filterwarnings("error")
def test_history_of_silence_alone_is_drawn_without_a_warning(tmp_path):
    row = {"epoch": 1, "loss": 0.0, "val_loss": 0.0, "learning_rate": 1e-3}

    plot_history(tmp_path / "history.png", [row])

    assert (tmp_path / "history.png").is_file()


def test_variations_of_tracks_are_faster_or_slower_and_follow_from_the_seed():
    images = np.random.default_rng(0).random((20, 16, 100, 1)).astype(np.float16)
    windows = Windows(images, None, ["a"] * 10 + ["b"] * 10, seed=0)
    autoencoder = Autoencoder((16, 100, 1), (4, 4), (1, 3), (1, 2), 3, bins_as_channels=True)

    plain = outputs.encode_tracks(autoencoder, windows)
    varied, again = (outputs.encode_tracks(autoencoder, windows, 3, seed=1) for _ in range(2))

    assert [*map(len, plain)] == [500, 500] and len(varied) == 6
    lengths = [*map(len, varied)]
    assert len({*lengths}) > 3 and min(lengths) > 465 and max(lengths) < 535
    assert all(map(np.array_equal, varied, again))
