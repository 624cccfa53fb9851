import numpy as np
import pytest

from support.spectrograms import SILENCE_DB
from training.devices import Distribution
from training.windows import Windows, make_images

ATOL = 2e-3  # float16 in [0, 1] rounds by 2.5e-4, and a range of 30 dB magnifies that


def make_ramps(**options):
    """Windows over three pieces, the first two of one track; frame f lies at f dB, 10 a piece."""
    unit = np.linspace(0, 1, 10, dtype=np.float16).reshape(1, 1, 10, 1)
    ranges = [(0, 9), (10, 19), (20, 29)]
    options = {"top_db": 40, "batch_size": 3, "seed": 0, **options}
    return Windows(unit.repeat(3, axis=0).repeat(4, axis=1), ranges, ["a", "a", "b"], **options)


def draw(windows, indices, max_stretch=0.0, seed=0):
    gathered = windows.gather(np.asarray(indices), np.random.default_rng(seed), max_stretch)
    return np.array(make_images(gathered, windows.top_db)), gathered


def collect_epoch(windows):
    """The first frame of each window of an epoch, batch by batch."""
    batches = (windows[index] for index in range(len(windows)))
    return [batch["frames"][:, 0, 0, 0].tolist() for batch in batches]


def make_numbers(n=7, **options):
    """Windows over n pieces, each of which holds its own number, over 8."""
    pieces = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1).repeat(4, axis=2) / 8
    return Windows(pieces, batch_size=3, **options)


def test_batches_hold_every_piece_once_an_epoch_in_a_new_order():
    windows = make_numbers(seed=1, shift=False)

    first = collect_epoch(windows)
    windows.start_epoch(1)
    second = collect_epoch(windows)

    assert [len(batch) for batch in first] == [3, 3, 1]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == [n / 8 for n in range(7)]
    assert first != second


def test_batches_follow_from_the_seed_and_the_epoch_alone():
    first, again, other = (make_ramps(seed=seed) for seed in (1, 1, 2))
    collect_epoch(first)  # an epoch more than the others

    def collect(windows):
        windows.start_epoch(1)
        (batch,) = (windows[index] for index in range(len(windows)))
        return batch

    batches = [collect(windows) for windows in (first, again, other)]
    for name, values in batches[0].items():
        np.testing.assert_array_equal(values, batches[1][name])
    assert (batches[0]["level"] != batches[2]["level"]).any()
    one, other, _ = (batch["level"] for batch in map(make_numbers(seed=0).__getitem__, range(3)))
    assert (one != other).any()  # from batch to batch, too


def test_batches_without_a_seed_keep_the_order_and_are_shared_evenly():
    processes = [Distribution(n_devices=2, share=(index, 2)) for index in range(2)]
    shares = [collect_epoch(make_numbers(distribution=process)) for process in processes]

    # Batches of 3 are rounded up to 4, the last one to 4 with the first piece.
    numbers = [[[round(8 * n) for n in batch] for batch in share] for share in shares]
    assert numbers == [[[0, 2], [4, 6]], [[1, 3], [5, 0]]]


def test_half_of_the_batches_are_as_high_as_they_were_recorded():
    pitches = [draw(make_ramps(), [0, 1], 0.1, seed)[1]["pitch"] for seed in range(60)]

    assert np.mean([(pitch == 1).all() for pitch in pitches]) == pytest.approx(0.5, abs=0.2)


@pytest.mark.parametrize("piece, starts", [(0, range(10)), (1, range(1, 11))])
def test_a_window_runs_on_into_the_next_piece_of_its_track_or_back(piece, starts):
    images, gathered = draw(make_ramps(), np.full(50, piece))

    # Ten consecutive frames of the ramp, 1 dB apart, in a range of 40 dB.
    steps = np.diff(images[:, 0, :, 0], axis=1)
    np.testing.assert_allclose(steps, 1 / 40, atol=ATOL)
    found = np.rint(gathered["low"][:, 0] + 9 * gathered["frames"][:, 0, 0, 0]).astype(int)
    assert {*found} == {*starts}


def test_a_window_of_a_track_of_one_piece_moves_by_two_frames():
    images, _ = draw(make_ramps(), np.full(50, 2))

    repeated = (np.diff(images[:, 0, :, 0], axis=1) < ATOL).sum(axis=1)  # at an end
    assert {*repeated} == {0, 1, 2}


def test_a_window_is_in_a_range_between_its_tracks_and_its_own():
    images, gathered = draw(make_ramps(), np.zeros(200, int))

    own_peaks = gathered["low"][:, -1] + 9 * gathered["frames"][:, -1, 0, 0]
    peaks = images.max(axis=(1, 2, 3))
    in_track = 1 - (19 - own_peaks) / 40
    assert (peaks > in_track - ATOL).all() and (peaks < 1 + ATOL).all()
    shares = (peaks - in_track)[own_peaks < 15] / (1 - in_track)[own_peaks < 15]
    assert shares.min() < 0.2 and shares.max() > 0.8


def test_pieces_without_a_seed_are_in_the_ranges_of_their_tracks():
    images = make_ramps(seed=None).cut(np.arange(3))

    np.testing.assert_allclose(images[0, 0, :, 0], 1 - np.arange(19, 9, -1) / 40, atol=ATOL)
    for index in (1, 2):
        np.testing.assert_allclose(images[index].max(), 1, atol=ATOL)


def test_a_track_is_cut_across_its_pieces():
    image = make_ramps().cut_track(0, np.arange(3, 17))

    assert image.shape == (4, 14, 1)
    np.testing.assert_allclose(image[0, :, 0], 1 - np.arange(16, 2, -1) / 40, atol=ATOL)


def test_what_lies_below_the_range_is_on_its_floor():
    images, _ = draw(make_ramps(top_db=5), np.zeros(20, int))

    # Of ten frames, 1 dB apart, those 5 dB or more below the top of the range lie on the floor.
    assert (images[..., :4, :] < ATOL).all()


def test_digital_silence_is_at_the_floor_in_any_range():
    silence = np.zeros((1, 4, 10, 1), np.float16)
    windows = Windows(silence, [(SILENCE_DB, SILENCE_DB)], seed=0)

    images, _ = draw(windows, np.zeros(20, int))

    np.testing.assert_array_equal(images, np.zeros((20, 4, 10, 1)))


def test_windows_are_stretched_in_time_and_in_frequency():
    levels = np.add.outer(np.arange(200, dtype=np.float32), np.arange(100, dtype=np.float32))
    windows = Windows(levels[np.newaxis, ..., np.newaxis] / 298, [(0, 298)], top_db=298, seed=0)

    drawn = np.concatenate([draw(windows, [0], 0.1, seed)[0] for seed in range(30)])[..., 0]

    # The slope over the bins, relative to that over the frames, tells the two stretches' ratio.
    slopes = (drawn[:, 150, 50] - drawn[:, 50, 50]) / (drawn[:, 50, 80] - drawn[:, 50, 30]) / 2
    assert 0.8 < slopes.min() < 0.95 and 1.05 < slopes.max() < 1.25


@pytest.mark.parametrize("shift, count, n", [(False, 9, 3), (True, 9, 9), (True, 2, 2)])
def test_windows_to_start_from_are_near_all_pieces_alike(shift, count, n):
    assert make_ramps(shift=shift).draw(count, seed=0).shape == (n, 4, 10, 1)
