"""New music: the prior, the modes, evaluation and the page; the last through a real browser."""

import os
import re
import shutil

import matplotlib.image
import numpy as np
import pytest
import soundfile

import generate
import train
from autoencoder import Autoencoder
from generation import evaluation
from generation.evaluation import measure_mel_distance
from generation.modes import Item, Sources, compose, make_samples, morph, tour_components
from generation.page import Page
from generation.prior import Followers, Prior, TrainingPieces, fit_process
from helpers import (
    SAMPLE_RATE,
    make_music,
    make_settings,
    make_tone,
    name_folders,
    read_all,
    read_csv,
    write_latents,
)
from support import dataset, files
from support.errors import UserError
from training.outputs import save_prior
from training.splits import load_split

STEP = np.array([[0.8, 0.3], [-0.3, 0.8]])  # of what follows a point
FACES = np.random.default_rng(5).standard_normal((2, 6))  # from a point to a latent


def make_pieces(n_tracks=40, length=20, seed=0, peak=0.0):
    """TrainingPieces and Followers of two genres, whose latents turn and decay, but for noise."""
    rng = np.random.default_rng(seed)
    points = np.zeros((n_tracks, 2 * length, 2))
    points[:, 0] = rng.standard_normal((n_tracks, 2)) * 2
    for step in range(1, 2 * length):
        points[:, step] = points[:, step - 1] @ STEP.T + rng.standard_normal((n_tracks, 2))
    latents = points @ FACES
    latents[n_tracks // 2 :, :, 3] += 50  # the other genre
    ranges = np.stack([points[..., 0] - 80, points[..., 0]], axis=-1) + peak
    n = n_tracks * length
    genres = np.repeat(["calm", "wild"], n // 2)
    pieces = TrainingPieces(
        latents=latents[:, ::2].reshape(n, 6),
        ranges=ranges[:, ::2].reshape(n, 2),
        keys=[f"{genre}/{i // length}.wav.{i % length:03d}.npy" for i, genre in enumerate(genres)],
        genres=genres,
        bands=np.zeros((n, 2, 2), np.uint8),
    )
    followers = Followers(
        exist=np.tile(np.arange(length) < length - 1, n_tracks),
        latents=latents[:, 1::2].reshape(n, 6),
        ranges=ranges[:, 1::2].reshape(n, 2),
    )
    return pieces, followers


def test_new_pieces_are_drawn_from_the_density_of_training_pieces():
    pieces, followers = make_pieces()

    latents, ranges, tracks = Prior.fit(pieces, followers).sample(4000, 1, np.random.default_rng(0))

    assert len({*tracks}) == 40 and tracks[0] in {*map(dataset.get_track, pieces.keys)}
    is_wild = latents[:, 3] > 25
    assert 0.4 < is_wild.mean() < 0.6
    for drawn, genre in ((latents[~is_wild], "calm"), (latents[is_wild], "wild")):
        recorded = pieces.latents[pieces.genres == genre]
        np.testing.assert_allclose(drawn.mean(axis=0), recorded.mean(axis=0), atol=0.3)
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(recorded.T), atol=1.6)
    peaks = pieces.ranges[:, 1]
    np.testing.assert_allclose(ranges[:, 1] - ranges[:, 0], 80, atol=1e-2)  # as all have
    assert ranges[:, 1].std() == pytest.approx(peaks.std(), rel=0.15)
    assert peaks.min() - 1e-3 <= ranges[:, 1].min() and ranges[:, 1].max() <= peaks.max() + 1e-3


def test_what_follows_is_what_followed_in_training_pieces():
    prior = Prior.fit(*make_pieces(length=100)).take_genre("calm")

    latents, _, _ = prior.walk(5000, 1, np.random.default_rng(0))

    assert latents[:, 3].max() < 25  # the genre asked for
    points = latents @ np.linalg.pinv(FACES)
    step = np.linalg.lstsq(points[:-1], points[1:], rcond=None)[0].T
    np.testing.assert_allclose(step, STEP, atol=0.1)
    noise = points[1:] - points[:-1] @ step.T
    np.testing.assert_allclose(noise.std(axis=0), 1, rtol=0.15)
    # It neither fades away nor grows.
    np.testing.assert_allclose(points[2500:].std(axis=0), points[:2500].std(axis=0), rtol=0.15)


def test_what_two_windows_share_stays_the_same():
    rng = np.random.default_rng(0)
    halves = rng.standard_normal((20, 81, 3))
    windows = np.concatenate([halves[:, :-1], halves[:, 1:]], axis=-1)  # half a piece apart
    pieces, followers = make_pieces(20, 40)
    pieces = pieces._replace(latents=windows[:, ::2].reshape(-1, 6))
    followers = followers._replace(latents=windows[:, 1::2].reshape(-1, 6))

    latents, _, _ = Prior.fit(pieces, followers).walk(500, 1, rng)

    assert np.abs(latents[:-1, 3:] - latents[1:, :3]).mean() < 0.12
    assert latents.std() > 0.8


def make_tracks(levels, spreads, length=100):
    """TrainingPieces and Followers of tracks without any order, each about a level of its own."""
    pieces, followers = make_pieces(len(levels), length)
    rng = np.random.default_rng(2)
    latents, next_latents = (
        np.repeat(levels, length)[:, np.newaxis]
        + np.repeat(spreads, length)[:, np.newaxis] * rng.standard_normal(pieces.latents.shape)
        for _ in range(2)
    )
    ranges = np.full_like(pieces.ranges, (-80, 0))
    return (
        pieces._replace(latents=latents, ranges=ranges),
        followers._replace(latents=next_latents, ranges=ranges),
    )


def test_a_new_piece_stays_with_one_track_and_strays_as_far_as_it():
    prior = Prior.fit(*make_tracks(levels=[0, 2, 4, 6], spreads=[0.3, 1, 1, 1], length=400))

    walks = [prior.walk(300, 1, np.random.default_rng(seed)) for seed in range(12)]

    spreads = {}
    for latents, _, track in walks:
        level = 2 * int(track.split("/")[1].split(".")[0])
        assert abs(latents.mean() - level) < 0.3
        spreads[level] = (latents - latents.mean(axis=0)).std()
    assert len(spreads) > 2
    assert spreads.pop(0) == pytest.approx(0.3, rel=0.3)
    assert [*spreads.values()] == pytest.approx([1] * len(spreads), rel=0.25)


def test_a_continuation_is_in_the_manner_of_the_nearest_track():
    prior = Prior.fit(*make_tracks(levels=[0, 2, 4, 6], spreads=[1, 1, 1, 1]))
    start = np.full(6, 3.9), (-80.001, -0.001)

    latents, ranges, track = prior.walk(300, 1, np.random.default_rng(0), start)

    assert ranges[:, 1].mean() == pytest.approx(-0.001, abs=1e-4)  # the recording has this level
    assert track == "wild/2.wav" and abs(latents.mean() - 4) < 0.3


def test_a_prior_comes_back_from_its_folder(tmp_path):
    prior = Prior.fit(*make_pieces())
    prior.save(tmp_path)

    again = Prior.load(tmp_path)

    drawn = [each.walk(20, 1, np.random.default_rng(0)) for each in (prior, again)]
    for one, other in zip(*(walk[:2] for walk in drawn), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)  # float32
    assert drawn[0][2] == drawn[1][2]
    assert b"pickle" not in (tmp_path / "prior.npz").read_bytes()


@pytest.mark.parametrize(
    "name, change",
    [
        ("step", lambda array: array[1:]),
        ("centres", lambda array: array * np.nan),
        ("counts", lambda array: array * 0),
        ("genres", lambda array: array[1:]),
        ("spreads", lambda array: array.astype(str)),
    ],
)
def test_a_damaged_prior_is_named(tmp_path, name, change):
    Prior.fit(*make_pieces()).save(tmp_path)
    arrays = files.load_arrays(tmp_path / "prior.npz")
    np.savez(tmp_path / "prior.npz", **{**arrays, name: change(arrays[name])})

    with pytest.raises(UserError, match=f"prior.npz is damaged: run train.py again .*{name}"):
        Prior.load(tmp_path)


def test_temperature_scales_how_far_draws_stray():
    prior = Prior.fit(*make_pieces(2, 500)).take_genre("calm")  # one track

    spreads = [
        draw(2000, temperature, np.random.default_rng(0))[0].std()
        for draw in (prior.sample, prior.walk)
        for temperature in (0, 1, 2)
    ]

    centred = np.square(spreads) - spreads[0] ** 2  # the mean's own components differ, too
    assert spreads[0] == pytest.approx(spreads[3], rel=1e-4)
    for still, one, two in (centred[:3], centred[3:]):
        assert still == pytest.approx(0, abs=1e-2) and two == pytest.approx(4 * one, rel=0.05)


@pytest.mark.parametrize("n_tracks, length", [(2, 1), (2, 2), (4, 3)])
def test_few_pieces_are_enough_for_a_prior(n_tracks, length):
    prior = Prior.fit(*make_pieces(n_tracks, length))

    for draw in (prior.sample, prior.walk):
        latents, ranges, _ = draw(50, 1, np.random.default_rng(0))

        assert latents.shape == (50, 6) and ranges.shape == (50, 2)
        assert np.isfinite(latents).all() and np.isfinite(ranges).all()


def test_tracks_without_any_change_have_a_process_that_rests():
    step, *factors = fit_process(np.zeros((9, 3)), np.zeros((16, 6)))

    assert np.isfinite(step).all() and np.abs(factors).max() < 0.01


@pytest.mark.parametrize("count, message", [(1, "got 1: "), (5, "got 5 that are all the same: ")])
def test_a_prior_needs_pieces_that_differ(count, message):
    pieces, followers = make_pieces()
    pieces = pieces._replace(latents=pieces.latents[[0] * count])

    with pytest.raises(UserError, match=f"a prior needs at least 2 training pieces, {message}"):
        Prior.fit(pieces, followers)


def test_mel_distance_is_zero_for_itself_and_the_gain_for_a_gain():
    tone = make_music()

    assert measure_mel_distance(tone, tone, SAMPLE_RATE) == 0
    # 6 dB of gain, less if both lie at the floor
    assert 5 < measure_mel_distance(tone, 2 * tone, SAMPLE_RATE) <= 6.03
    first, second = (np.random.default_rng(seed).standard_normal(30000) for seed in (0, 1))
    single = measure_mel_distance(first, second, SAMPLE_RATE)  # of noise that scatters
    assert measure_mel_distance(first, second, SAMPLE_RATE, pooled_frames=8) < single / 2


def run_generate(folder, samples, *flags):
    generate.main([*name_folders(folder), "--samples", str(samples), *flags])


MODES = {
    "sample": (("--sample", "3", "--genre", "wild"), 3 * [6615]),
    "compose": (("--compose", "2.5"), [55125]),
    "interpolate": (
        ("--interpolate", "calm/0.wav.000", "wild/1.wav.001", "--steps", "3"),
        [6615, 6615, 6615, 6615 + 2 * 52 * 64],
    ),
    "audio_files": (("--audio_files", "song.wav"), [72765]),
    "components": (("--components", "2"), 2 * [6615 + 4 * 52 * 64]),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.filterwarnings("error::UserWarning")
def test_each_mode_writes_sound_of_the_length_asked_for(tmp_path, trained, monkeypatch, mode):
    flags, lengths = MODES[mode]
    monkeypatch.chdir(trained)

    run_generate(trained, tmp_path, *flags)

    paths = sorted((tmp_path / "new").glob("*.wav"))
    signals = [soundfile.read(path)[0] for path in paths]
    assert sorted(len(signal) for signal in signals) == sorted(lengths)
    for path, signal in zip(paths, signals, strict=True):
        assert 1e-4 < np.abs(signal).max() < 1, path
        picture = matplotlib.image.imread(tmp_path / "pictures" / "new" / f"{path.stem}.png")
        assert picture.shape == (260, 460, 4) and len(np.unique(picture)) > 20
        assert f"new/{path.name}" in (tmp_path / "index.html").read_text()


def test_latents_of_a_model_are_those_of_its_pieces(trained):
    pieces = TrainingPieces.load(trained / "model")
    images = train.load_fsdd(trained / "saved_data" / "spectrograms", keys=pieces.keys)

    latents = Autoencoder.load(trained / "model").encode(images)

    np.testing.assert_allclose(pieces.latents, latents, rtol=1e-4, atol=1e-4)  # float32


def test_new_music_follows_the_seed(tmp_path, trained):
    def make(name, seed):
        run_generate(
            trained, tmp_path / name, "--sample", "2", "--compose", "1", "--seed", str(seed)
        )
        return [path.read_bytes() for path in sorted((tmp_path / name / "new").glob("*.wav"))]

    first, again, other = make("a", 1), make("b", 1), make("c", 2)

    assert len(first) == 3 and first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_new_pieces_are_compared_with_training_and_held_out_ones(tmp_path, trained):
    run_generate(trained, tmp_path, "--sample", "4")

    rows = read_csv(tmp_path / "metrics.csv")
    sets = {row["figure"]: float(row["value"]) for row in rows if row["item"] == "all new pieces"}
    noise, training, *_ = (
        sets[f"kernel distance from held-out pieces, {name}"]
        for name in ("noise", "training pieces", "reconstructions", "new pieces")
    )
    assert training < 0.3 * noise
    assert [row["value"] for row in rows if row["figure"] == "temperature"] == ["1.0"] * 4
    nearest = [row["value"] for row in rows if row["figure"] == "nearest training audio"]
    tracks = {*load_split(trained / "model" / "split.json")["train"]}
    assert len(nearest) == 4 and {text.rpartition(" at ")[0] for text in nearest} <= tracks


def test_a_long_piece_is_compared_with_how_training_tracks_move(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(evaluation, "MOTION_S", 0.9)  # of tracks of four pieces of 0.3 s

    run_generate(trained, tmp_path, "--compose", "2")

    names = [row["figure"] for row in read_csv(tmp_path / "metrics.csv")]
    motion = [re.search(r"\(training tracks: (\S+) to (\S+)\)", name) for name in names]
    ranges = [[*map(float, found.groups())] for found in motion if found]
    assert len(ranges) == 3 and all(low <= high for low, high in ranges)


def test_new_pieces_need_no_features(tmp_path, trained, capsys):
    shutil.copytree(trained / "model", tmp_path / "model")

    generate.main(
        ["--model", str(tmp_path / "model"), "--samples", str(tmp_path / "made"), "--sample", "2"]
        + ["--saved_data", str(tmp_path / "nowhere")]
    )

    assert len([*(tmp_path / "made" / "new").glob("*.wav")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "are not compared with held-out ones: no settings at" in line


def test_pairs_are_recorded_inverted_and_reconstructed(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(generate, "BATCH_SIZE", 2)

    run_generate(trained, tmp_path, "--num_spectrograms", "5")

    kinds = ("recorded", "original", "generated")
    names = [sorted(path.name for path in (tmp_path / kind).glob("*.wav")) for kind in kinds]
    assert len(names[0]) == 5 and names[0] == names[1] == names[2]
    rows = read_csv(tmp_path / "metrics.csv")
    distances = [float(row["value"]) for row in rows if row["figure"] == "mel distance, dB"]
    assert len(distances) == 5 and 0 < max(distances) < 20
    recorded = soundfile.read(tmp_path / "recorded" / names[0][0])[0]
    own, other = (
        measure_mel_distance(recorded, soundfile.read(tmp_path / "original" / name)[0], SAMPLE_RATE)
        for name in names[0][:2]
    )
    assert own < 0.5 * other
    picture = matplotlib.image.imread(tmp_path / "spectrograms.png")
    assert picture.shape == (500, 1600, 4) and len(np.unique(picture)) > 20


def test_the_documents_constants_are_the_defaults(tmp_path, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_data = shutil.copytree(trained / "saved_data", tmp_path / "elsewhere")
    (saved_data / "min_max_values").rename(tmp_path / "ranges")
    path = tmp_path / "ranges" / "min_max_values.pkl"
    monkeypatch.setattr(generate, "SPECTROGRAMS_PATH", "elsewhere/spectrograms")
    monkeypatch.setattr(generate, "MIN_MAX_VALUES_PATH", str(path))
    monkeypatch.setattr(generate, "SAVE_DIR_ORIGINAL", "one/o")
    monkeypatch.setattr(generate, "SAVE_DIR_GENERATED", "two/g")

    generate.main(["--model", str(trained / "model"), "--num_spectrograms", "2"])

    originals, generated = (
        sorted(path.name for path in (tmp_path / folder).glob("*.wav"))
        for folder in ("one/o", "two/g")
    )
    assert len(originals) == 2 and originals == generated
    page = (tmp_path / "samples" / "index.html").read_text()
    assert f'src="../one/o/{originals[0]}"' in page


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--sample", "1", "--genre", "wilt"), "no genre is called 'wilt', but: wild"),
        (("--interpolate", "calm/0.wav.000", "calm/0.wav.00"), "but: calm/0.wav.00"),
    ],
)
def test_bad_requests_are_refused(tmp_path, trained, monkeypatch, flags, message):
    monkeypatch.chdir(trained)

    with pytest.raises(UserError, match=message):
        run_generate(trained, tmp_path / "samples", *flags)

    assert not (tmp_path / "samples" / "index.html").exists()


def test_songs_that_cannot_be_read_cost_only_themselves(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    songs = ["missing.wav", "saved_data/source.json", "song.wav", str(tmp_path / "short.wav")]
    soundfile.write(tmp_path / "short.wav", np.ones(1), 192_000)

    with pytest.raises(UserError, match="3 songs could not be read"):
        run_generate(trained, tmp_path / "samples", "--audio_files", *songs, "--components", "1")

    missing, not_audio, short = capsys.readouterr().err.splitlines()
    assert missing.startswith("skipped missing.wav: cannot be opened")
    assert not_audio.startswith("skipped saved_data/source.json: not readable as audio")
    assert "short.wav: holds no samples" in short  # at 22050 Hz
    names = sorted(path.name for path in (tmp_path / "samples" / "new").glob("*.wav"))
    assert names == ["component-001.wav", "song-song.wav.wav"]


def test_a_folder_of_songs_is_sent_through_whole(tmp_path, trained):
    (tmp_path / "songs" / "deep").mkdir(parents=True)
    for name in ("a.wav", "deep/a.wav"):
        shutil.copy(trained / "song.wav", tmp_path / "songs" / name)

    run_generate(trained, tmp_path / "samples", "--audio_files", str(tmp_path / "songs"))

    names = sorted(path.name for path in (tmp_path / "samples" / "new").glob("*.wav"))
    assert len(names) == 2 and all(name.startswith("song-a.wav") for name in names)


def test_a_song_that_is_cut_is_made_and_its_shortage_is_said(tmp_path, trained, capsys):
    data = (trained / "song.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) * 2 // 3])

    run_generate(trained, tmp_path / "samples", "--audio_files", str(tmp_path / "cut.wav"))

    assert "cut.wav (ends 1.1 s before the length" in capsys.readouterr().out


def test_a_recording_goes_on_in_several_ways(tmp_path, trained):
    song = str(trained / "song.wav")

    run_generate(trained, tmp_path, "--continue", song, "1.5", "--num_spectrograms", "2")

    recorded = soundfile.read(trained / "song.wav")[0]
    made = [soundfile.read(path)[0] for path in sorted((tmp_path / "new").glob("*.wav"))]
    assert len(made) == 2 and {len(sound) for sound in made} == {len(recorded) + 33075}
    n_kept = len(recorded) - 128  # half a frame
    scales = [
        sound[:n_kept] @ recorded[:n_kept] / np.square(recorded[:n_kept]).sum() for sound in made
    ]
    for sound, scale in zip(made, scales, strict=True):  # what would clip was scaled down
        np.testing.assert_allclose(sound[:n_kept], scale * recorded[:n_kept], atol=2e-3)
        assert np.abs(sound[len(recorded) :]).max() > 0.01
    assert np.abs(made[0][len(recorded) :] - made[1][len(recorded) :]).max() > 0.01


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("missing.wav", "2"), "missing.wav: cannot be opened"),
        (("song.wav", "x"), "SECONDS, got .x."),
    ],
)
def test_impossible_continuations_are_refused(tmp_path, trained, monkeypatch, arguments, message):
    monkeypatch.chdir(trained)

    with pytest.raises(UserError, match=message):
        run_generate(trained, tmp_path / "samples", "--continue", *arguments)


def test_a_page_of_others_is_left_alone(tmp_path, trained):
    (tmp_path / "index.html").write_text("mine")

    with pytest.raises(UserError, match="was not written here: name another"):
        run_generate(trained, tmp_path, "--sample", "1")

    assert read_all(tmp_path) == {"index.html": b"mine"}


def test_a_second_run_in_one_samples_folder_is_refused(tmp_path, trained):
    with files.lock(tmp_path), pytest.raises(UserError, match="another run is writing"):
        run_generate(trained, tmp_path, "--sample", "1")

    assert read_all(tmp_path) == {}


def test_runs_of_several_modes_share_one_page(tmp_path, trained):
    run_generate(trained, tmp_path, "--num_spectrograms", "1", "--sample", "3", "--seed", "1")
    sets = [row for row in read_csv(tmp_path / "metrics.csv") if row["item"] == "all new pieces"]

    run_generate(trained, tmp_path, "--components", "1")

    html = (tmp_path / "index.html").read_text()
    assert html.index("new/component-001.wav") < html.index("new/sample-any-t1-seed1-000.wav")
    rows = read_csv(tmp_path / "metrics.csv")
    assert sets and [row for row in rows if row["item"] == "all new pieces"] == sets
    assert len({row["item"] for row in rows}) == 5  # a pair, three new pieces, all of these


class Echo:
    """In place of a SoundGenerator and its autoencoder: its spectrograms are latents and ranges."""

    sample_rate = 10  # Hz
    n_samples, hop_length, window_hop = 4, 1, 2

    def __init__(self):
        self.autoencoder = self

    def fit_images(self, spectrograms):
        return np.stack(spectrograms)

    def encode(self, images):
        return images

    def decode(self, latents, min_max_values):
        pairs = zip(latents, min_max_values, strict=True)
        return [np.array([*latent, entry["min"], entry["max"]]) for latent, entry in pairs]

    def add_texture(self, log_spectrogram):
        return log_spectrogram

    def invert_all(self, log_spectrograms, n_samples):
        return log_spectrograms

    def count_windows(self, n_samples):
        return n_samples

    def join(self, windows, n_samples):
        joined = np.stack([*windows])
        return joined, joined


def fit_prior(folder):
    """Write the prior over a latents.npz, of whose pieces none is followed by another."""
    pieces = TrainingPieces.load(folder)
    none = np.zeros(len(pieces.keys), bool)
    save_prior(folder, pieces, Followers(none, pieces.latents, pieces.ranges))


@pytest.fixture
def sources(tmp_path):
    """Sources of the latents of two genres: calm ones near 0, wild ones near 100, and louder."""
    latents = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    latents[20:] += 100
    keys = [f"{('calm', 'wild')[index // 20]}/{index}.wav.000.npy" for index in range(40)]
    calm, wild = (-90.0, -10.0), (-70.0, 10.0)
    write_latents(tmp_path, latents, keys, [calm] * 20 + [wild] * 20)
    fit_prior(tmp_path)
    return Sources(tmp_path, None, None)


def test_new_pieces_have_the_range_that_was_drawn_with_their_latent(sources):
    items = make_samples(Echo(), sources, 12, genre=None, temperature=0.1, seed=0)

    made = np.array([item.log_spectrograms["new"] for item in items])

    is_wild = made[:, 0] > 50
    assert 0 < is_wild.sum() < 12
    np.testing.assert_array_equal(made[:, -1] > 0, is_wild)


def test_new_pieces_are_of_the_genre_asked_for(sources):
    items = make_samples(Echo(), sources, 12, genre="wild", temperature=1, seed=0)

    assert min(item.latents.min() for item in items) > 50


def test_a_long_piece_is_of_the_genre_asked_for(sources):
    (item,) = compose(Echo(), sources, 1.0, genre="wild", temperature=1, seed=0)

    assert item.latents.min() > 50


def test_a_long_piece_strays_as_far_as_its_temperature(sources):
    cool, hot = (
        next(compose(Echo(), sources, 20.0, genre="calm", temperature=temperature, seed=0))
        for temperature in (0.1, 4)
    )

    assert cool.latents.std(axis=0).mean() < 0.5 * hot.latents.std(axis=0).mean()


def test_a_morph_goes_from_the_first_piece_to_the_second():
    images = [np.full(2, level, np.float32) for level in (0, 3)]
    min_max_values = [{"min": -90.0, "max": 0.0}, {"min": -60.0, "max": 9.0}]

    *steps, whole = morph(Echo(), None, images, min_max_values, ["a", "b"], steps=4)

    expected = [[0, 0, -90, 0], [1, 1, -80, 3], [2, 2, -70, 6], [3, 3, -60, 9]]
    made = [item.log_spectrograms["new"] for item in steps]
    np.testing.assert_allclose(made, expected, atol=1e-4)  # float32
    np.testing.assert_array_equal(whole.log_spectrograms["new"], made)


def test_a_tour_goes_two_standard_deviations_to_either_side(tmp_path):
    latents = np.array([[-6, 0], [6, 0], [0, -1], [0, 1]] * 2, np.float32) + 5
    write_latents(tmp_path, latents, [f"{index}.wav.000.npy" for index in range(8)])
    fit_prior(tmp_path)

    first, _ = tour_components(Echo(), Sources(tmp_path, None, None), 2)

    made = first.log_spectrograms["new"]
    expected = 5 + np.array([-2, -1, 0, 1, 2]) * np.sqrt(144 / 7)  # of 8 values: 4 * 36, over 7
    np.testing.assert_allclose(sorted(made[:, 0]), expected, rtol=1e-4)
    np.testing.assert_allclose(made[:, 1:], [[5, -80, 0]] * 5, atol=1e-4)
    assert "97 % of the variance" in first.title


def test_a_place_in_the_latent_space_is_that_of_the_tour(tmp_path, trained):
    run_generate(trained, tmp_path, "--explore", "-2", "0.5")

    assert [path.name for path in (tmp_path / "new").iterdir()] == ["explore--2_0.5.wav"]
    with pytest.raises(UserError, match="there are 8 directions to explore, got 9"):
        run_generate(trained, tmp_path, "--explore", *["1"] * 9)


@pytest.mark.parametrize("latents", [np.ones((1, 4)), np.ones((3, 4))])
def test_new_music_needs_pieces_that_differ(tmp_path, latents):
    write_latents(tmp_path, latents, [f"{index}.wav.000.npy" for index in range(len(latents))])
    fit_prior(tmp_path)

    with pytest.raises(FileNotFoundError, match="no prior at .* 2 training pieces that"):
        next(tour_components(None, Sources(tmp_path, None, None), 3))


def test_a_model_without_texture_makes_music_without_it(tmp_path, trained):
    shutil.copytree(trained / "model", tmp_path / "model")
    (tmp_path / "model" / "texture.json").unlink()
    samples = tmp_path / "samples"
    flags = ["--model", str(tmp_path / "model"), "--samples", str(samples), "--explore", "1"]

    with pytest.raises(FileNotFoundError, match="or add --no-texture"):
        generate.main(flags)
    generate.main([*flags, "--no-texture"])

    assert (samples / "new" / "explore-1.wav").is_file()


def test_a_morph_takes_audio_files_as_well_as_pieces(tmp_path, trained):
    song = str(trained / "song.wav")

    run_generate(trained, tmp_path, "--interpolate", song, "calm/0.wav.000", "--steps", "2")

    assert len([*(tmp_path / "new").glob("morph-*.wav")]) == 3


def test_pieces_of_the_genre_that_were_not_trained_on_are_held_out(trained, tmp_path):
    spectrograms_path = trained / "saved_data" / "spectrograms"
    sources = Sources(trained / "model", spectrograms_path, None)
    keys = dataset.list_keys(spectrograms_path)
    held_out = load_split(trained / "model" / "split.json")["valid"]
    expected = {
        genre: [k for k in keys if dataset.get_track(k) in held_out and k.startswith(genre or "")]
        for genre in (None, "calm")
    }

    for genre, chosen in expected.items():
        images = generate.load_held_out(sources, genre)

        assert len(images) == len(chosen) > 0
        for image, key in zip(images, chosen, strict=True):
            np.testing.assert_array_equal(image, dataset.load_spectrogram(spectrograms_path, key))


@pytest.mark.parametrize("flags", [("--temperature", "-1"), ("--compose", "0"), ("--sample", "0")])
def test_impossible_numbers_are_refused(trained, capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        generate.main([*flags])

    assert "must be at least" in capsys.readouterr().err


def test_damaged_latents_are_named(tmp_path):
    (tmp_path / "latents.npz").write_bytes(b"rubbish")

    with pytest.raises(UserError, match=r"latents\.npz is damaged"):
        TrainingPieces.load(tmp_path)


def test_page_escapes_what_it_shows(tmp_path):
    title = "<script>alert('x')</script>"
    tone = make_tone(440, 0.3)
    item = Item("a b#1", title, {"new": 3 * tone}, {}, {"nearest training piece": title})
    page = Page(tmp_path, make_settings())

    page.add(*generate.save_item(item, {"new": tmp_path / "new"}, SAMPLE_RATE))
    page.finish({title: title})

    html = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    assert 'src="new/a%20b%231.wav"' in html and (tmp_path / "new" / "a b#1.wav").is_file()
    assert "scaled to avoid clipping" in html
    assert np.abs(soundfile.read(tmp_path / "new" / "a b#1.wav")[0]).max() < 1


@pytest.mark.slow
def test_page_plays_and_shows_everything_in_a_browser(tmp_path, trained, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    run_generate(trained, tmp_path, "--num_spectrograms", "2")

    browser.get((tmp_path / "index.html").as_uri())
    browser.execute_script("for (const i of document.images) i.loading = 'eager'")
    wait = WebDriverWait(browser, 30)
    all_loaded = "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    wait.until(lambda b: b.execute_script(all_loaded))
    browser.execute_script("window.all = [...document.querySelectorAll('audio')]")
    browser.execute_script("all[0].loop = true; all[0].play()")
    wait.until(lambda b: b.execute_script("return all[0].currentTime > 0.05"))
    browser.execute_script("all[1].loop = true; all[1].play()")
    wait.until(lambda b: b.execute_script("return all[1].currentTime > 0.05"))

    assert browser.execute_script("return all.map(a => a.paused)") == [True, False] + [True] * 4
    assert browser.execute_script("return document.images.length") == 7
    browser.save_screenshot(os.environ.get("SCREENSHOT", str(tmp_path / "page.png")))
