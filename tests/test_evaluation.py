import numpy as np
import pytest

from generation.evaluation import (
    REPLAY,
    ReplaySearch,
    measure_kernel_distances,
    measure_motion,
    pool_frames,
)
from support.bands import extract_bands


def make_tracks(count, n_steps=128, seed=0):
    """Bands of music-like tracks: notes that begin, sound and end; float32 (count, n_steps, 32)."""
    rng = np.random.default_rng(seed)
    tracks = np.zeros((count, n_steps, 32), np.float32)
    for track in tracks:
        for _ in range(n_steps):
            start, length = rng.integers(n_steps), rng.integers(2, 12)
            band, width = rng.integers(32), rng.integers(1, 4)
            track[start : start + length, band : band + width] += rng.uniform(0.1, 0.5)
    return tracks.clip(0, 1)


def blur(bands):
    """Each cell with its neighbours, as an autoencoder leaves it, at another level."""
    padded = np.pad(bands, 1, mode="edge")
    moved = [
        padded[i : i + len(bands), j : j + bands.shape[1]] for i in (0, 1, 2) for j in (0, 1, 2)
    ]
    return 0.7 * np.mean([*moved, bands, bands, bands], axis=0) + 0.1


def test_a_replay_is_found_at_any_offset_of_any_track():
    tracks = make_tracks(20)
    search = ReplaySearch(np.rint(255 * tracks).astype(np.uint8).reshape(40, 64, 32))
    rng = np.random.default_rng(0)

    places = [(rng.integers(20), rng.integers(128 - 64)) for _ in range(30)]
    excerpts = np.array([blur(tracks[track, start : start + 64]) for track, start in places])
    similarities, steps = search.find(excerpts)

    np.testing.assert_array_equal(steps, [128 * track + start for track, start in places])
    assert similarities.min() > REPLAY


def test_other_music_and_silence_are_no_replays():
    search = ReplaySearch(make_tracks(20).reshape(40, 64, 32))

    similarities, _ = search.find(make_tracks(30, seed=1)[:, :64])

    assert similarities.max() < REPLAY
    assert search.find(np.zeros((1, 64, 32)))[0] == 0


def test_the_distance_of_two_draws_of_one_distribution_is_zero_within_its_spread():
    pieces = make_tracks(400, 64)

    for count in (8, 30, 100):
        found = [
            measure_kernel_distances(pieces[:100], {"others": pieces[start : start + count]})
            for start in range(100, 400, count)
        ]
        errors = [distance / spread for ((distance, spread),) in (f.values() for f in found)]

        assert np.mean(np.abs(errors) < 2) >= 2 / 3, count


def test_sets_of_other_music_are_further_away_than_their_spread():
    pieces = make_tracks(130, 64)
    sets = {"louder": pieces[100:] + 0.2, "held": np.repeat(pieces[100:, :1], 64, axis=1)}

    distances = measure_kernel_distances(pieces[:100], sets)

    assert all(distance > 5 * spread for distance, spread in distances.values())


def test_the_discrepancy_is_that_of_its_definition():
    from generation.evaluation import estimate_discrepancy

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 2)), rng.standard_normal((5, 2)) + 1

    def estimate(x, y):
        kernel = lambda a, b: np.exp(-np.square(a[:, None] - b).sum(-1))  # noqa: E731
        xx, yy, yx = kernel(x, x), kernel(y, y), kernel(y, x)
        unequal = lambda k: (k.sum() - np.trace(k)) / (len(k) * (len(k) - 1))  # noqa: E731
        return (xx, yy, yx), 100 * (unequal(xx) + unequal(yy) - 2 * yx.mean())

    kernels, expected = estimate(x, y)
    without_x = [estimate(np.delete(x, i, 0), y)[1] for i in range(7)]
    without_y = [estimate(x, np.delete(y, i, 0))[1] for i in range(5)]

    distance, spread = estimate_discrepancy(*kernels)

    assert distance == pytest.approx(expected)
    assert spread == pytest.approx(np.sqrt(6 * np.var(without_x) + 4 * np.var(without_y)))


def test_bands_are_means_over_mel_bands_steps_and_channels():
    image = np.zeros((1, 512, 10, 2), np.float32)
    image[:, :, 4:8] = 0.5
    image[:, :, 4:8, 1] = 1.0

    (bands,) = extract_bands(image, 22050)

    np.testing.assert_allclose(bands, np.repeat([[0], [0.5]], 32, axis=1), atol=1e-6)
    assert pool_frames(bands.T, 2).shape == (32, 1)


def test_motion_tells_a_pulse_a_swing_and_flux():
    rng = np.random.default_rng(0)
    step_s, n_steps = 0.05, 1200
    still = rng.normal(-40, 1, (n_steps, 8))
    seconds = step_s * np.arange(n_steps)[:, np.newaxis]
    swinging = still + 8 * np.sin(2 * np.pi * seconds / 31)
    pulsing = still + 1.5 * np.sin(2 * np.pi * seconds / 1.5)

    plain, swing, pulse = (measure_motion(each, step_s, 1.5) for each in (still, swinging, pulsing))

    assert plain["level swing, dB"] < 0.5
    assert swing["level swing, dB"] == pytest.approx(8 / np.sqrt(2), rel=0.05)
    assert plain["flux, dB"] == pytest.approx(2 / np.sqrt(np.pi), rel=0.05)  # of two normals
    assert max(plain["pulse at the windows' rate"], swing["pulse at the windows' rate"]) < 4
    assert pulse["pulse at the windows' rate"] > 20
