"""The prior: what its flow learns of tracks, and how it fills what is unknown."""

import numpy as np
import pytest

from helpers import make_tracks
from support import prior as prior_module
from support.errors import UserError
from support.flow import Flow
from support.prior import Prior, find_stretch
from training import flows
from training.callbacks import BestWeights
from training.checkpoint import Checkpoint
from training.sequences import LatentSequences


def make_walks(n_tracks=8, n_steps=200, seed=0):
    """(TrainingTracks of two genres, their latents): those turn about a level, 5 or -5.

    A latent and the next are related: it turns by a tenth of a circle, but for noise.
    """
    rng = np.random.default_rng(seed)
    turn = np.exp(0.2j * np.pi)
    latents = []
    for track in range(n_tracks):
        point, points = 2 * np.exp(2j * np.pi * rng.random()), []
        for _ in range(n_steps):
            point = turn * point + 0.1 * (rng.standard_normal() + 1j * rng.standard_normal())
            point *= 2 / abs(point)
            points.append((point.real, point.imag, 5 * (-1) ** track))
        latents.append(np.array(points, np.float32))
    names = [f"{('calm', 'wild')[track % 2]}/{track}.wav" for track in range(n_tracks)]
    return make_tracks(names, np.arange(n_tracks)), latents


def measure_turns(latents):
    """By how much of a circle each latent has turned when the next one comes."""
    points = latents[:, 0] + 1j * latents[:, 1]
    return np.angle(points[1:] / points[:-1]) / (2 * np.pi)


pytestmark = pytest.mark.real_flow


@pytest.fixture(autouse=True)
def shallow(monkeypatch):
    """A flow of two blocks: to trace the training of six takes 10 s."""
    monkeypatch.setattr(prior_module, "DILATIONS", (1, 4))


@pytest.fixture(scope="module")
def walking():
    """A Prior that has learned such walks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flows, "PRIOR_BATCHES", (1600, 1600))  # in all EPOCHS
        patch.setattr(flows, "LEARNING_RATE", 4e-3)
        tracks, latents = make_walks()
        return flows.train_prior(tracks, latents, held_out=make_walks(2, seed=1)[1], epochs=2)


def draw(prior, n_steps, style, seed=0, **keywords):
    nothing = np.zeros((n_steps, 3), np.float32), np.zeros(n_steps, bool)
    return prior.fill(*nothing, style, rng=np.random.default_rng(seed), **keywords)


def test_new_steps_follow_each_other_as_those_of_training_tracks_do(walking):
    latents = draw(walking, 400, walking.styles[0])  # longer than a window

    turns = measure_turns(latents)
    assert latents.shape == (400, 3) and latents.dtype == np.float32
    assert np.median(turns) == pytest.approx(0.1, abs=0.01)
    assert (np.abs(turns - 0.1) < 0.05).mean() > 0.8  # at joints, too
    assert np.quantile(np.hypot(*latents[:, :2].T), [0.1, 0.9]) == pytest.approx(2, abs=0.8)


def test_new_steps_are_in_the_style_asked_for_and_change_with_it(walking):
    calm, wild = (draw(walking, 100, style)[:, 2] for style in walking.styles[:2])
    way = np.repeat(walking.styles[:2], 150, axis=0)

    changing = draw(walking, 300, way)[:, 2]

    assert calm.mean() == pytest.approx(5, abs=1) and wild.mean() == pytest.approx(-5, abs=1)
    assert changing[:100].mean() > 3 and changing[-100:].mean() < -3


@pytest.mark.parametrize("gap", [(30, 60), (0, 60), (60, 128), (20, 280), (64, 65)])
def test_known_steps_stay_and_what_is_drawn_goes_with_them(walking, gap):
    _, (latents, *_) = make_walks(1, gap[1] + 40 if gap[1] != 128 else 128, seed=3)
    known = np.ones(len(latents), bool)
    known[slice(*gap)] = False
    given = np.where(known[:, None], latents, 1e3)  # what is not known is not looked at

    filled = walking.fill(given, known, walking.styles[0], rng=np.random.default_rng(0))

    np.testing.assert_allclose(filled[known], latents[known], atol=1e-4)
    inside = slice(max(0, gap[0] - 1), gap[1] + 1)
    assert np.abs(measure_turns(filled)[inside] - 0.1).mean() < 0.04


def test_without_temperature_nothing_is_left_to_chance(walking):
    first, again, hot = (
        draw(walking, 64, walking.styles[0], seed, temperature=temperature)
        for seed, temperature in ((0, 0), (1, 0), (1, 1))
    )

    np.testing.assert_array_equal(first, again)
    assert np.abs(first - hot).max() > 0.1


def test_tracks_are_chosen_as_often_as_they_are_long_and_of_the_genre_asked_for():
    prior = Prior.prepare(*make_walks(4, 20))._replace(n_steps=np.array([10, 30, 0, 60]))
    rng = np.random.default_rng(0)

    chosen = np.bincount([prior.draw_style(rng)[1] for _ in range(1000)])

    assert chosen == pytest.approx([100, 300, 0, 600], abs=60)
    assert {prior.draw_style(rng, "calm")[1] for _ in range(20)} == {0}
    with pytest.raises(UserError, match="no genre is called 'clam', but: calm"):
        prior.draw_style(rng, "clam")


def test_the_style_of_a_part_of_the_one_track_is_near_its_own():
    tracks, latents = make_walks(1)

    prior = Prior.prepare(tracks, latents)

    assert np.abs(prior.find_style(latents[0][:40])).max() < 5  # deviations


def test_directions_are_those_in_which_styles_differ():
    styles = np.array([[-6, 0], [6, 0], [0, -1], [0, 1]], np.float32)
    prior = Prior.prepare(*make_walks(4, 20))._replace(styles=styles)

    directions = np.abs(prior.find_directions())

    np.testing.assert_allclose(directions[:2], [[18**0.5, 0], [0, 0.5**0.5]], atol=1e-5)


def test_a_prior_comes_back_from_its_folder(tmp_path, walking):
    walking.save(tmp_path)

    loaded = Prior.load(tmp_path)

    again, first = (draw(prior, 80, prior.styles[0]) for prior in (loaded, walking))
    np.testing.assert_array_equal(again, first)
    assert loaded.tracks.tolist() == walking.tracks.tolist()
    style = loaded.find_style(make_walks()[1][0])
    np.testing.assert_allclose(style, loaded.styles[0], rtol=1e-3)


@pytest.mark.parametrize("change", [{"weight_1": np.ones(3)}, {"flow": "{}"}, {"more": np.ones(2)}])
def test_a_damaged_prior_is_named(tmp_path, walking, change):
    walking.save(tmp_path)
    arrays = {**np.load(tmp_path / "prior.npz"), **change}
    np.savez(tmp_path / "prior.npz", **arrays)

    with pytest.raises(UserError, match=r"prior\.npz is damaged, or of another version"):
        Prior.load(tmp_path)


@pytest.mark.parametrize("n_tracks, n_steps", [(2, 1), (1, 2)])
def test_few_steps_are_enough_for_a_prior(monkeypatch, eager, n_tracks, n_steps):
    monkeypatch.setattr(flows, "PRIOR_BATCHES", (20, 20))

    prior = flows.train_prior(*make_walks(n_tracks, n_steps), epochs=1)

    assert prior.window == n_steps
    assert np.isfinite(draw(prior, 3, prior.styles[0])).all()


@pytest.mark.parametrize("latents", [np.ones((1, 3)), np.ones((9, 3))])
def test_a_prior_needs_steps_that_differ(latents, capsys):
    assert flows.train_prior(make_tracks(["a"]), [latents]) is None

    assert "a prior needs steps of music that differ" in capsys.readouterr().out


def test_sequences_follow_from_the_seed_and_the_epoch():
    prior = Prior.prepare(*make_walks(4, 100))
    first, again, other = (
        LatentSequences(prior, make_walks(4, 100)[1], 8, 3, seed) for seed in (0, 0, 1)
    )
    held_out = LatentSequences(prior, make_walks(2, 30)[1], 8, 3, 0, is_training=False)

    def read(sequences, epoch):
        sequences.epoch = epoch
        return sequences[1][1]

    np.testing.assert_array_equal(read(first, 2), read(again, 2))
    assert not np.array_equal(read(first, 2), read(first, 3))
    assert not np.array_equal(read(first, 2), read(other, 2))
    np.testing.assert_array_equal(read(held_out, 2), read(held_out, 3))
    assert held_out[0][0]["style"][:, 0, -1].tolist() == [1] * 8
    inputs, *_ = LatentSequences(prior, make_walks(4, 100)[1], 400, 1, 0)[0]
    assert (inputs["style"] == 0).all(axis=(1, 2)).mean() == pytest.approx(0.15, abs=0.06)


def test_what_a_sequence_knows_is_as_it_is_and_does_not_count():
    prior = Prior.prepare(*make_walks(4, 100))
    sequences = LatentSequences(prior, make_walks(4, 100)[1], 200, 1, 0)

    inputs, velocities, weights = sequences[0]

    known = inputs["given"][..., 0] == 1
    assert (weights[known] == 0).all() and weights.mean() == pytest.approx(1)
    assert 0.3 < known.any(axis=1).mean() < 0.7  # half of the sequences, some of none
    assert {(row[0], row[-1]) for row in known} == {(a, b) for a in (0, 1) for b in (0, 1)}
    # From each place on the way, the rest of the velocity leads to the data.
    ends = inputs["place"] + (1 - inputs["time"][..., None]) * velocities
    radius = np.hypot(*(ends * prior.scale + prior.mean)[~known][:, :2].T)
    assert radius == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize(
    "n_steps, gap, expected",
    [
        (200, (0, 200), 0),  # nothing is known
        (200, (100, 200), 70),  # from left to right, in even parts: 34 new ones
        (200, (0, 100), 66),  # from right to left
        (200, (90, 110), 68),  # in the middle of a window
        (200, (40, 150), 13),
    ],
)
def test_a_stretch_sees_what_is_known_beside_it(n_steps, gap, expected):
    known = np.ones(n_steps, bool)
    known[slice(*gap)] = False

    assert find_stretch(known, 64) == expected


def test_guidance_goes_further_toward_the_style(walking):
    levels = [
        [draw(walking, 64, style, guidance=guidance)[:, 2].mean() for style in walking.styles[:2]]
        for guidance in (0.0, 0.5, 1.0)
    ]

    none, half, whole = (calm - wild for calm, wild in levels)
    assert none == pytest.approx(0, abs=1e-3) and 0 < half < whole


@pytest.mark.parametrize("filters", [2, 8])  # fewer than numbers, and more
def test_a_new_flow_leaves_noise_as_it_is(filters):
    flow = Flow(3, 1, 4, filters, dilations=(1, 2))
    noise = np.random.default_rng(0).standard_normal((2, 9, 3)).astype(np.float32)

    drawn = flow.draw(noise, np.zeros((2, 9, 1), np.float32), np.ones((2, 1, 4), np.float32))

    np.testing.assert_allclose(drawn, noise, rtol=0.05)


def test_a_prior_whose_training_was_interrupted_goes_on_as_if_it_had_not_stopped(
    tmp_path, monkeypatch, eager
):
    monkeypatch.setattr(flows, "PRIOR_BATCHES", (20, 20))  # one in an epoch
    tracks, latents = make_walks(4, 80)

    def fit(path):
        prior = flows.train_prior(tracks, latents, held_out=latents[:1], epochs=3, path=path)
        return prior.flow.network.get_weights()

    def stop(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt

    whole = fit(tmp_path / "a.npz")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(BestWeights, "on_epoch_begin", stop)
        fit(tmp_path / "b.npz")
    resumed = fit(tmp_path / "b.npz")

    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert Checkpoint.load(tmp_path / "b.npz").count_finished_epochs() == 3
    before = (tmp_path / "b.npz").read_bytes()
    fit(tmp_path / "b.npz")  # nothing is left to do
    assert (tmp_path / "b.npz").read_bytes() == before
    latents = [each[::-1] for each in latents]
    flows.train_prior(tracks, latents, epochs=1, path=tmp_path / "b.npz")  # another run
    assert Checkpoint.load(tmp_path / "b.npz").run["epochs"] == 1
