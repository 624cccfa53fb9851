"""Detail: what its flow learns of the difference between frames and their blur."""

import numpy as np
import pytest
from scipy.ndimage import uniform_filter1d

from support.detail import NOISE_REACH, Detail, find_kernel, make_white_noise
from training import flows, sequences
from training.sequences import N_FRAMES, FrameSequences
from training.windows import Windows

HEIGHT, WIDTH = 24, 80
TONE, NOISE = slice(0, 8), slice(8, 20)  # rows; those above are silent

pytestmark = pytest.mark.real_flow


class Blur:
    """An autoencoder that keeps the means of neighbouring frames."""

    class model:
        get_weights = staticmethod(list)

    def reconstruct(self, images):
        return uniform_filter1d(images, 9, axis=2), None


def make_pieces(n=60, channels=1, seed=0):
    """Pieces of steady rows, noisy rows and silent rows at some level, (n, HEIGHT, WIDTH, _)."""
    rng = np.random.default_rng(seed)
    pieces = np.zeros((n, HEIGHT, WIDTH, channels), np.float32)
    pieces[:, TONE] = 0.6
    pieces[:, NOISE] = 0.5 + 0.07 * rng.standard_normal((n, 12, WIDTH, channels))
    pieces[:, :20] += rng.uniform(-0.2, 0.2, (n, 1, 1, 1)).astype(np.float32)
    return pieces.clip(0, 1)


@pytest.fixture(scope="module")
def learned():
    """The Detail that such pieces lose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows, "DETAIL_BATCHES", (1, 1600))  # in all EPOCHS
        return flows.train_detail(Blur(), Windows(make_pieces(), seed=0, shift=False), epochs=2)


def test_detail_is_scatter_where_noise_was_and_nothing_on_tones_and_in_silence(learned):
    (piece,) = make_pieces(1, seed=9)
    (blurred,), _ = Blur().reconstruct(piece[np.newaxis])

    found = learned.add(blurred)

    assert found.shape == piece.shape and found.dtype == np.float32
    deviations = [
        [each[rows].std(axis=1).mean() for rows in (TONE, NOISE)]
        for each in (piece, blurred, found)
    ]
    (_, real), (_, smooth), (tone, noise) = deviations
    assert smooth < 0.4 * real and noise == pytest.approx(real, rel=0.2)
    assert tone < 0.15 * real and found[20:].max() < 0.02
    assert np.abs(found.mean(axis=1) - piece.mean(axis=1)).max() < 0.04  # its level


def test_another_seed_draws_other_detail_and_the_same_the_same(learned):
    (blurred,), _ = Blur().reconstruct(make_pieces(1))

    first, again, other = (learned.add(blurred, seed) for seed in (0, 0, 1))

    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other)[NOISE].mean() > 0.03


def test_parts_have_the_detail_of_the_whole(learned):
    (blurred,), _ = Blur().reconstruct(make_pieces(1))
    blurred = np.tile(blurred, (1, 10, 1))
    first, start, stop, last = 250 - learned.reach, 250, 300, 300 + learned.reach

    whole, part = learned.add(blurred), learned.add(blurred[:, first:last], 0, first)

    assert first > 0 and last < blurred.shape[1]
    np.testing.assert_allclose(
        part[:, start - first : stop - first], whole[:, start:stop], atol=1e-4
    )


def test_channels_that_are_alike_stay_alike(learned):
    (blurred,), _ = Blur().reconstruct(make_pieces(1))

    left, right = np.moveaxis(learned.add(np.repeat(blurred, 2, axis=2)), 2, 0)

    np.testing.assert_allclose(left, right, atol=1e-5)


def test_noise_goes_on_from_part_to_part():
    whole = make_white_noise(0, 200, (400, 3))

    parts = [make_white_noise(0, start, (100, 3)) for start in range(200, 600, 100)]

    inner = np.concatenate([part[NOISE_REACH:-NOISE_REACH] for part in parts])
    np.testing.assert_array_equal(inner, whole[NOISE_REACH:-NOISE_REACH])
    assert abs(whole.mean()) < 0.1 and whole.std() == pytest.approx(1, abs=0.1)
    assert np.abs(np.corrcoef(np.ravel(parts[0]), np.ravel(parts[1]))[0, 1]) < 0.2


def test_noise_is_as_alike_from_cell_to_cell_as_what_is_lost():
    rng = np.random.default_rng(0)
    lost = uniform_filter1d(rng.standard_normal((50, 100, 40), np.float32), 3, axis=1)
    lost /= lost.std()
    detail = Detail(None, None, None, None, find_kernel(lost))

    noise = detail.filter_noise(rng.standard_normal((50, 116, 56), np.float32))

    assert noise.shape == lost.shape and noise.std() == pytest.approx(1, abs=0.02)
    for axis, lag in ((1, 1), (1, 2), (1, 4), (2, 1)):
        found, expected = (
            (np.take(each, range(lag, 40), axis) * np.take(each, range(40 - lag), axis)).mean()
            for each in (noise, lost)
        )
        assert found == pytest.approx(expected, abs=0.1)


def test_detail_is_saved_and_loaded(learned, tmp_path):
    (blurred,), _ = Blur().reconstruct(make_pieces(1))

    assert Detail.load(tmp_path) is None
    learned.save(tmp_path)

    np.testing.assert_array_equal(Detail.load(tmp_path).add(blurred), learned.add(blurred))


def test_batches_follow_from_the_seed_and_those_held_out_stay():
    windows = Windows(make_pieces(20, channels=2), seed=0)
    first, again, other = (FrameSequences(None, Blur(), windows, 4, 3, n) for n in (0, 0, 1))
    held_out = FrameSequences(first.detail, Blur(), windows, 4, 3, 0, is_training=False)

    def get(sequences, epoch=0):
        sequences.start_epoch(epoch)
        inputs, velocity, weights = sequences[1]
        assert velocity.shape == (4, N_FRAMES, HEIGHT) and (weights == 1).all()
        return inputs["place"]

    np.testing.assert_array_equal(get(first), get(again))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert (get(first) != get(other)).any() and (get(first) != get(first, 1)).any()
    np.testing.assert_array_equal(get(held_out), get(held_out, 1))


def test_long_pieces_pass_through_the_autoencoder_one_at_a_time(monkeypatch):
    monkeypatch.setattr(sequences, "N_DECODED", WIDTH)

    long = FrameSequences(None, Blur(), Windows(make_pieces(20), seed=0), 4, 3, 0)

    assert long.n_windows == 1 and long[0][1].shape == (4, N_FRAMES, HEIGHT)


def test_some_windows_stand_still_and_detail_is_told_how_much_frames_change():
    sequences = FrameSequences(None, Blur(), Windows(make_pieces(), seed=0, shift=False), 16, 1, 0)

    frames, reconstructed = sequences._draw_pairs(np.random.default_rng(0), 16)

    stands_still = frames.std(axis=1).max(axis=1) < 1e-6
    assert [*np.flatnonzero(stands_still)] == [0, 1]
    changes = sequences.detail.standardise(reconstructed)[..., HEIGHT:]
    assert changes[:2, :, NOISE].max() < changes[2:, :, NOISE].min() - 0.2
