import librosa
import numpy as np
import pytest

import autoencoder
from autoencoder import Autoencoder
from generation.evaluation import (
    REPLAY,
    Evaluator,
    ReplaySearch,
    cut_excerpts,
    estimate_discrepancy,
    measure_coverage,
    measure_kernel_distance,
    measure_run,
    summarise,
    summarise_form,
)
from generation.modes import Item
from helpers import make_music
from soundgenerator import SoundGenerator
from support.bands import extract_bands, make_weights, pool_frames
from support.tracks import TrainingTracks


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


def test_a_replay_is_found_at_any_offset_and_other_music_and_silence_are_none():
    tracks = make_tracks(20)
    search = ReplaySearch(np.rint(255 * tracks).astype(np.uint8).reshape(-1, 32), 64)
    rng = np.random.default_rng(0)

    places = [(rng.integers(20), rng.integers(128 - 64)) for _ in range(30)]
    excerpts = np.array([blur(tracks[track, start : start + 64]) for track, start in places])
    similarities, steps = search.find(excerpts)

    np.testing.assert_array_equal(steps, [128 * track + start for track, start in places])
    assert similarities.min() > REPLAY
    others, _ = search.find(make_tracks(30, seed=1)[:, :64])
    assert others.max() < REPLAY and search.find(np.zeros((1, 64, 32)))[0] == 0


def test_the_distance_of_two_draws_of_one_distribution_is_near_zero():
    points = summarise(make_tracks(400, 64))

    distances = [
        measure_kernel_distance(points[:100], points[start : start + 30])
        for start in range(100, 400, 30)
    ]

    assert abs(np.mean(distances)) < 0.5 and np.abs(distances).max() < 3


def test_sets_of_other_music_are_far_away():
    pieces = make_tracks(130, 64)
    louder, held = pieces[100:] + 0.2, np.repeat(pieces[100:, :1], 64, axis=1)

    distances = [
        measure_kernel_distance(summarise(pieces[:100]), summarise(each)) for each in (louder, held)
    ]

    assert min(distances) > 20


def test_the_discrepancy_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 2)), rng.standard_normal((5, 2)) + 1
    kernels = [np.exp(-np.square(a[:, None] - b).sum(-1)) for a, b in ((x, x), (y, y), (y, x))]
    unequal = [k[~np.eye(len(k), dtype=bool)].mean() for k in kernels[:2]]

    distance = estimate_discrepancy(*kernels)

    assert distance == pytest.approx(100 * (sum(unequal) - 2 * kernels[2].mean()))


def test_training_audio_may_be_shorter_than_an_excerpt():
    track = make_tracks(1, 40)[0]
    search = ReplaySearch(track, 64)
    assert ReplaySearch(track, 1).find(track[np.newaxis, :1])[0] == 0  # no change in one step

    (similarity,), (step,) = search.find(np.pad(track, [(0, 24), (0, 0)])[np.newaxis])

    assert similarity == pytest.approx(1, abs=1e-3) and step == 0


def test_excerpts_follow_each_other_and_short_ones_end_in_silence():
    bands = np.arange(1.0, 11)[:, np.newaxis]

    long, short = cut_excerpts(bands, 4, 2)[..., 0], cut_excerpts(bands[:3], 4, 2)[..., 0]

    np.testing.assert_array_equal(long, [[1, 2, 3, 4], [3, 4, 5, 6], [5, 6, 7, 8], [7, 8, 9, 10]])
    np.testing.assert_array_equal(short, [[1, 2, 3, 0]])


def test_the_longest_verbatim_run_is_that_of_what_was_copied():
    rng = np.random.default_rng(0)
    bands, others = rng.random((2, 200, 32))
    others[50:110] = 0.5 * bands[50:110]  # at another level

    runs = [measure_run(bands, each, 20) for each in (others, bands, rng.random((150, 32)))]

    assert 60 <= runs[0] <= 60 + 2 * 20 and runs[1] == 200 and runs[2] == 0


def test_a_set_covers_what_it_comes_near_to():
    points = np.random.default_rng(0).standard_normal((300, 2))
    half = points[:150][points[:150, 0] > 0]

    shares = [measure_coverage(points[150:], each) for each in (points[:150], half, points[:9] + 9)]

    assert shares[0] > 0.95 and 0.45 < shares[1] < 0.75 and shares[2] == 0


def test_the_form_of_a_piece_that_comes_back_is_another_one_than_that_of_one_that_drifts():
    levels = np.repeat([[0.0, 1, 0, 1, 0, 1], [0.0, 0, 0, 1, 1, 1]], 5, axis=1)

    forms = summarise_form(np.repeat(levels[..., np.newaxis], 4, axis=2), 5)

    assert forms.shape == (2, 4 + 3)
    np.testing.assert_allclose(forms[0, 4:], [-1, 1, -1])
    assert forms[1, 4] > 0.5 > forms[1, 6]


def test_bands_are_means_over_mel_bands_steps_and_channels():
    image = np.zeros((512, 10, 2), np.float32)
    image[:, 4:8] = 0.5
    image[:, 4:8, 1] = 1.0
    image[:, 9] = 0.5

    bands = extract_bands(image, 22050)

    # The last step has two frames.
    np.testing.assert_allclose(bands, np.repeat([[0], [0.75], [0.25]], 32, axis=1), atol=1e-6)
    assert pool_frames(bands.T, 2).shape == (32, 2)
    loudest = make_weights(22050, 512, 32).argmax(axis=1) * 22050 / 1024  # Hz
    np.testing.assert_allclose(loudest, librosa.mel_frequencies(34, fmax=11025)[1:-1], atol=11)


class Blank:
    """In place of an autoencoder: all that the Evaluator asks of it."""

    input_shape = (128, 104, 1)
    frames_per_step = 4
    reach = 0
    plan_stretches = Autoencoder.plan_stretches

    def reconstruct(self, images):
        return images, None


def hear(signal):
    """The bands of a sound, uint8, as tracks.npz has them."""
    generator = SoundGenerator(Blank(), 64, frame_size=256, n_samples=6615)
    bands = Evaluator(generator, make_tracks_of([signal], [[0]]), [])._hear(signal)
    return np.rint(255 * bands).astype(np.uint8)


def make_tracks_of(signals, bands):
    """TrainingTracks of signals."""
    names = np.array([f"{index}.wav" for index in range(len(signals))])
    counts = np.array([*map(len, bands)])
    all_bands = np.concatenate(bands).reshape(counts.sum(), -1)
    return TrainingTracks(all_bands, counts, np.zeros(len(names)), names, names)


def test_a_sound_that_replays_a_track_is_told_where(monkeypatch):
    monkeypatch.setattr(autoencoder, "STRETCH_STEPS", 37)
    signals = [make_music(2.0, seed) for seed in range(4)]
    tracks = make_tracks_of(signals, [*map(hear, signals)])
    generator = SoundGenerator(Blank(), 64, frame_size=256, n_samples=6615)
    evaluator = Evaluator(generator, tracks, [])
    start = 4 * 64 * 50  # samples: 50 steps of bands
    sounds = 0.5 * signals[2][start : start + 6615], make_music(2.0, seed=9)

    copied, other = (evaluator.compare(Item("", "", {"new": s}, {}, True)).figures for s in sounds)

    track, _, seconds = copied["nearest training audio"].removesuffix(" s").rpartition(" at ")
    assert track == "2.wav" and float(seconds) == pytest.approx(start / 22050, abs=0.05)
    similarity = "similarity to it (a copy: above 0.35)"  # of short pieces
    assert copied[similarity] > 0.9 > 0.35 > other[similarity]
    assert copied["copies of training audio"] == "1 of 1 excerpts"
    assert copied["longest verbatim run, s"] == 0  # it is shorter than VERBATIM_S
    assert other["copies of training audio"] == "0 of 2 excerpts"  # one a second
