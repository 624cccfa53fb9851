"""New music: the prior, the modes, evaluation and the page; the last through a real browser."""

import os
import re
import shutil

import matplotlib.image
import numpy as np
import pytest
import soundfile

import generate
from autoencoder import Autoencoder
from generation import evaluation
from generation.evaluation import measure_mel_distance
from generation.modes import (
    Item,
    Sources,
    compose,
    continue_recording,
    explore,
    make_samples,
    morph,
    tour_components,
)
from generation.page import Page, plot_spectrogram
from helpers import (
    SAMPLE_RATE,
    make_music,
    make_settings,
    make_tone,
    make_tracks,
    name_folders,
    read_all,
    read_csv,
)
from support import dataset, files
from support.errors import UserError
from support.prior import Prior, TrainingTracks, fit_process
from support.settings import Settings
from training.splits import load_split

STEP = np.array([[0.8, 0.3], [-0.3, 0.8]])  # of what follows a point
FACES = np.random.default_rng(5).standard_normal((2, 6))  # from a point to a latent


def make_walks(n_tracks=40, length=400, seed=0, levels=0.0, spreads=1.0):
    """TrainingTracks of two genres, whose latents turn and decay about levels, but for noise.

    Args:
        levels, spreads: of all tracks, or of each.
    """
    rng = np.random.default_rng(seed)
    points = np.zeros((n_tracks, length, 2))
    points[:, 0] = rng.standard_normal((n_tracks, 2)) * 2
    for step in range(1, length):
        points[:, step] = points[:, step - 1] @ STEP.T + rng.standard_normal((n_tracks, 2))
    points *= np.reshape(spreads, (-1, 1, 1))
    latents = points @ FACES + np.reshape(levels, (-1, 1, 1))
    latents[n_tracks // 2 :, :, 3] += 50  # the other genre
    half = n_tracks // 2
    names = [f"{('calm', 'wild')[track >= half]}/{track}.wav" for track in range(n_tracks)]
    return make_tracks(latents, names, np.arange(n_tracks))


def find_points(latents, level=0.0):
    """The points that latents of the calm genre are made of."""
    return (latents - level) @ np.linalg.pinv(FACES)


def test_new_steps_follow_each_other_as_those_of_training_tracks_do():
    prior = Prior.fit(make_walks())

    latents, _, track = prior.take_genre("calm").walk(5000, 1, np.random.default_rng(0))

    assert latents[:, 3].max() < 25  # the genre asked for
    points = find_points(latents) / prior.spreads[prior.groups == track]
    points -= points.mean(axis=0)
    step = np.linalg.lstsq(points[:-1], points[1:], rcond=None)[0].T
    np.testing.assert_allclose(step, STEP, atol=0.05)
    noise = points[1:] - points[:-1] @ step.T
    np.testing.assert_allclose(noise.std(axis=0), 1, rtol=0.1)
    # It neither fades away nor grows.
    np.testing.assert_allclose(points[2500:].std(axis=0), points[:2500].std(axis=0), rtol=0.15)


def test_first_steps_are_spread_as_all_training_steps_are():
    tracks = make_walks(2, 4000)
    prior = Prior.fit(tracks)

    walks = [prior.walk(1, 1, np.random.default_rng(seed)) for seed in range(2000)]

    for index, name in enumerate(tracks.tracks):
        drawn = np.concatenate([latents for latents, _, track in walks if track == name])
        recorded = tracks.latents[4000 * index : 4000 * (index + 1)]
        assert 850 < len(drawn) < 1150
        np.testing.assert_allclose(drawn.mean(axis=0), recorded.mean(axis=0), atol=0.3)
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(recorded.T), atol=1.6)


def test_a_new_piece_stays_with_one_track_and_is_as_loud_and_strays_as_far_as_it():
    levels, factors = [0, 6, 12, 18], [0.3, 1, 1, 1]
    prior = Prior.fit(make_walks(4, 2000, levels=levels, spreads=factors))

    walks = [prior.walk(1000, 1, np.random.default_rng(seed)) for seed in range(12)]

    spreads = {}
    for latents, peak, track in walks:
        index = int(track.split("/")[1].split(".")[0])
        assert peak == index
        points = find_points(latents - 50 * (index >= 2) * np.eye(6)[3], levels[index])
        assert np.abs(points.mean(axis=0)).max() < 0.5
        spreads[index] = points.std()
    assert len(spreads) > 2
    ordinary = [spreads[index] for index in spreads if index]
    assert spreads[0] == pytest.approx(0.3 * np.mean(ordinary), rel=0.3)
    assert ordinary == pytest.approx([np.mean(ordinary)] * len(ordinary), rel=0.15)


def test_a_continuation_is_in_the_manner_of_the_nearest_track_and_begins_where_it_is():
    prior = Prior.fit(make_walks(4, levels=[0, 6, 12, 18]))
    past = np.full(6, 12, np.float32) + [2, 1] @ FACES + 50 * np.eye(6)[3]

    latents, peak, track = prior.walk(2000, 0, np.random.default_rng(0), past=past)
    strayed, _, _ = prior.walk(2000, 1, np.random.default_rng(0), past=past)

    assert track == "wild/2.wav" and peak == 2
    first, *_, last = find_points(latents - 50 * np.eye(6)[3], 12)
    np.testing.assert_allclose(first, STEP @ [2, 1], atol=0.25)  # a step after the past
    np.testing.assert_allclose(last, 0, atol=0.25)  # its mean
    assert np.abs(strayed - latents).std() > 1


def test_short_tracks_are_gathered_by_genre():
    tracks = make_walks(40, 20)

    prior = Prior.fit(tracks)

    assert [*prior.groups] == ["calm", "wild"] == [*prior.genres]
    assert [*prior.counts] == [400, 400] and [*prior.peaks] == pytest.approx([9.5, 29.5])
    is_wild = np.repeat(tracks.genres == "wild", 20)
    for centre, chosen in zip(prior.centres, (~is_wild, is_wild), strict=True):
        np.testing.assert_allclose(centre, tracks.latents[chosen].mean(axis=0), atol=1e-4)


def test_an_offset_is_added_to_all_that_is_drawn():
    prior = Prior.fit(make_walks(2))
    offset = np.arange(6.0)

    plain, moved = (
        prior.walk(50, 1, np.random.default_rng(0), offset=each)[0] for each in (0, offset)
    )

    np.testing.assert_allclose(moved - plain, np.tile(offset, (50, 1)), atol=1e-4)  # float32


def test_a_prior_comes_back_from_its_folder(tmp_path):
    prior = Prior.fit(make_walks())
    prior.save(tmp_path)

    again = Prior.load(tmp_path)

    drawn = [each.walk(20, 1, np.random.default_rng(0)) for each in (prior, again)]
    np.testing.assert_allclose(drawn[0][0], drawn[1][0], rtol=1e-3, atol=1e-3)  # float32
    assert drawn[0][1:] == drawn[1][1:]
    assert b"pickle" not in (tmp_path / "prior.npz").read_bytes()


@pytest.mark.parametrize(
    "name, change",
    [
        ("step", lambda array: array[1:]),
        ("centres", lambda array: array * np.nan),
        ("counts", lambda array: array * 0),
        ("genres", lambda array: array[1:]),
        ("spreads", lambda array: array.astype(str)),
        ("peaks", lambda array: array[:, np.newaxis]),
    ],
)
def test_a_damaged_prior_is_named(tmp_path, name, change):
    Prior.fit(make_walks()).save(tmp_path)
    arrays = files.load_arrays(tmp_path / "prior.npz")
    np.savez(tmp_path / "prior.npz", **{**arrays, name: change(arrays[name])})

    with pytest.raises(UserError, match=f"prior.npz is damaged, .*{name}.*: run train.py again"):
        Prior.load(tmp_path)


def test_temperature_scales_how_far_draws_stray():
    prior = Prior.fit(make_walks(2, 500)).take_genre("calm")  # one track

    walks = [prior.walk(2000, each, np.random.default_rng(0))[0] for each in (0, 1, 2)]

    still, one, two = (walk - prior.centres[0] for walk in walks)
    assert np.abs(still).max() == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(two, 2 * one, atol=1e-3)  # float32


@pytest.mark.parametrize("n_tracks, length", [(2, 1), (2, 2), (4, 3), (2, 40)])
def test_few_steps_are_enough_for_a_prior(n_tracks, length):
    prior = Prior.fit(make_walks(n_tracks, length))

    latents, _, _ = prior.walk(50, 1, np.random.default_rng(0))

    assert latents.shape == (50, 6) and np.isfinite(latents).all()


def test_a_process_without_any_change_rests():
    start_factor, noise_factor, step = fit_process(np.zeros((16, 6)), np.arange(15))

    assert np.isfinite(step).all()
    assert max(np.abs(start_factor).max(), np.abs(noise_factor).max()) < 0.01


@pytest.mark.parametrize("latents", [np.ones((1, 1, 6)), np.ones((5, 1, 6)), np.ones((2, 9, 6))])
def test_a_prior_needs_steps_that_differ(latents):
    tracks = make_tracks(latents, [f"{index}.wav" for index in range(len(latents))])

    with pytest.raises(UserError, match="a prior needs steps of music that differ: preprocess"):
        Prior.fit(tracks)


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
        [6615, 6615, 6615, 3 * 6615],
    ),
    "audio_files": (("--audio_files", "song.wav"), [72765]),
    "components": (("--components", "2"), 2 * [5 * 6615]),
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


def test_latents_of_a_model_are_those_of_its_tracks_recordings(trained):
    tracks = TrainingTracks.load(trained / "model")
    settings = Settings.load(trained / "model" / "settings.json")
    generator = settings.make_sound_generator(Autoencoder.load(trained / "model"))
    first = tracks.latents[: tracks.n_steps[0]]

    signal = settings.make_loader().load_whole(trained / "audio" / tracks.tracks[0])
    latents, min_max = generator.encode(signal)

    assert len(first) == 4 * 52  # of pieces, of which the last one is filled up
    assert 0 <= len(first) - len(latents) <= 1 and abs(tracks.peaks[0] - min_max["max"]) < 0.5
    inner = slice(2, 49)  # of the first piece: later ones lie beside whole frames of the track
    differences = np.square(first[inner] - latents[inner]).mean(axis=0)
    assert (differences < 1e-3 * np.var(latents[inner], axis=0)).all()


def test_new_music_follows_the_seed(tmp_path, trained):
    def make(name, seed):
        run_generate(
            trained, tmp_path / name, "--sample", "2", "--compose", "1", "--seed", str(seed)
        )
        return [path.read_bytes() for path in sorted((tmp_path / name / "new").glob("*.wav"))]

    first, again, other = make("a", 1), make("b", 1), make("c", 2)

    assert len(first) == 3 and first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_first_new_pieces_are_the_same_however_many_are_made(tmp_path, trained):
    for count in ("2", "3"):
        run_generate(trained, tmp_path / count, "--sample", count, "--seed", "4")

    two, three = (
        {path.name: path.read_bytes() for path in (tmp_path / count / "new").glob("*.wav")}
        for count in ("2", "3")
    )
    assert len(two) == 2 and len(three) == 3 and two == {name: three[name] for name in two}


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
    assert len(ranges) == 2 and all(low <= high for low, high in ranges)


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

    recorded, made = (
        [soundfile.read(path)[0] for path in sorted((tmp_path / kind).glob("*.wav"))]
        for kind in ("recorded", "new")
    )
    n = 72765  # samples of the recording
    assert [*map(len, recorded)] == [n] * 2 and [*map(len, made)] == [n + 33075] * 2
    for sound, song in zip(made, recorded, strict=True):
        np.testing.assert_allclose(sound[: n - 128], song[: n - 128], atol=2**-14)  # 16 bits
        assert np.abs(sound[n:]).max() > 0.01
    assert np.abs(made[0][n:] - made[1][n:]).max() > 0.01
    players = [item["players"] for item in files.read_json(tmp_path / "items.json")["items"]]
    seconds = [[player["seconds"] for player in each] for each in players]
    assert seconds == [pytest.approx([3.3, 4.8], abs=1e-3)] * 2


def test_the_first_of_several_continuations_is_that_of_its_seed(trained):
    settings = Settings.load(trained / "model" / "settings.json")
    generator = settings.make_sound_generator(Autoencoder.load(trained / "model"))
    request = str(trained / "song.wav"), "1.5"
    how = {"genre": None, "temperature": 1.0}

    def make(count, seed):
        sources = Sources(trained / "model", None, None)
        items = continue_recording(
            generator, sources, request, num_spectrograms=count, seed=seed, **how
        )
        return [item.sounds["new"] for item in items]

    (first, second), (again,) = make(2, 5), make(None, 6)

    np.testing.assert_array_equal(second, again)
    assert not np.array_equal(first, second)
    figure = plot_spectrogram(first, settings)
    (picture,) = figure.axes[0].images
    assert figure.axes[0].get_xlim() == pytest.approx((0, 4.8), abs=1e-3)
    assert picture.get_extent() == pytest.approx((0, 4.8, 0, SAMPLE_RATE / 2), abs=1e-3)


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
    """In place of a SoundGenerator and its autoencoder: sounds are what they are made of."""

    sample_rate, n_samples, top_db = 10, 4, 80.0
    input_shape, frames_per_step = (2, 3, 1), 1

    def __init__(self):
        self.autoencoder = self

    def fit_images(self, spectrograms, min_max_values):
        return np.stack(spectrograms), min_max_values

    def encode(self, images):
        return images

    def count_steps(self, n_samples):
        return n_samples

    def make_sound(self, latents, min_max, n_samples):
        return latents, min_max, n_samples


@pytest.fixture
def sources(tmp_path):
    """Sources of the latents of two genres: calm ones near 0, wild ones near 100, and louder."""
    latents = np.random.default_rng(0).standard_normal((40, 5, 3))
    latents[20:] += 100
    names = [f"{('calm', 'wild')[index // 20]}/{index}.wav" for index in range(40)]
    Prior.fit(make_tracks(latents, names, [-10] * 20 + [10] * 20)).save(tmp_path)
    return Sources(tmp_path, None, None)


def test_new_pieces_have_the_range_that_was_drawn_with_their_latents(sources):
    items = make_samples(Echo(), sources, 12, genre=None, temperature=0.1, seed=0)

    made = [item.sounds["new"] for item in items]

    is_wild = np.array([latents.mean() > 50 for latents, _, _ in made])
    assert 0 < is_wild.sum() < 12
    peaks = np.where(is_wild, 10, -10)
    assert [min_max["max"] for _, min_max, _ in made] == pytest.approx(peaks)
    assert [min_max["min"] for _, min_max, _ in made] == pytest.approx(peaks - 80)


def test_new_pieces_are_of_the_genre_asked_for(sources):
    items = make_samples(Echo(), sources, 12, genre="wild", temperature=1, seed=0)

    assert min(item.sounds["new"][0].min() for item in items) > 50


def test_a_long_piece_is_of_the_genre_and_the_length_asked_for(sources):
    (item,) = compose(Echo(), sources, 1.5, genre="wild", temperature=1, seed=0)

    latents, _, n_samples = item.sounds["new"]
    assert latents.min() > 50 and len(latents) == n_samples == 15


def test_a_long_piece_strays_as_far_as_its_temperature(sources):
    cool, hot = (
        next(compose(Echo(), sources, 20.0, genre="calm", temperature=temperature, seed=0))
        for temperature in (0.1, 4)
    )

    spreads = [item.sounds["new"][0].std(axis=0).mean() for item in (cool, hot)]
    assert spreads[1] == pytest.approx(40 * spreads[0], rel=1e-3)


def test_a_morph_goes_from_the_first_piece_to_the_second():
    images = [np.full((3, 2), level, np.float32) for level in (0, 3)]
    min_max_values = [{"min": -80.0, "max": 0.0}, {"min": -71.0, "max": 9.0}]

    *steps, whole = morph(Echo(), None, images, min_max_values, ["a", "b"], steps=4)

    made = [item.sounds["new"] for item in steps]
    for level, (latents, min_max, n_samples) in enumerate(made):
        np.testing.assert_allclose(latents, np.full((3, 2), level), atol=1e-4)  # float32
        assert min_max == pytest.approx({"min": 3 * level - 80, "max": 3 * level})
        assert n_samples == 4
    latents, min_max, n_samples = whole.sounds["new"]
    np.testing.assert_array_equal(latents, np.concatenate([each[0] for each in made]))
    assert min_max == pytest.approx({"min": -71, "max": 9}) and n_samples == 16


@pytest.fixture
def still_sources(tmp_path):
    """Sources of tracks that hardly change, whose means differ by 18 ** 0.5 and 0.5 ** 0.5."""
    centres = np.array([[-6, 0], [6, 0], [0, -1], [0, 1]] * 2) + 5.0
    latents = centres[:, np.newaxis] + 1e-3 * np.random.default_rng(0).standard_normal((8, 50, 2))
    Prior.fit(make_tracks(latents, [f"{index}.wav" for index in range(8)])).save(tmp_path)
    return Sources(tmp_path, None, None)


def test_a_tour_goes_two_standard_deviations_to_either_side(still_sources):
    first, second = tour_components(Echo(), still_sources, 2)

    for item, axis, deviation in ((first, 0, 18**0.5), (second, 1, 0.5**0.5)):
        latents, _, n_samples = item.sounds["new"]
        assert len(latents) == n_samples == 5 * 4
        np.testing.assert_allclose(latents[:, 1 - axis], 5, atol=0.01)  # they hardly change
        along = np.linspace(-2, 2, 20) * deviation
        along *= np.sign(latents[-1, axis] - 5)
        np.testing.assert_allclose(latents[:, axis] - 5, along, atol=0.01)


def test_a_place_is_that_many_standard_deviations_from_the_mean(still_sources):
    places = [
        next(explore(Echo(), still_sources, offsets)).sounds["new"][0].mean(axis=0) - 5
        for offsets in ([2], [0, -1], [-1, 2])
    ]

    expected = np.array([[2, 0], [0, 1], [1, 2]]) * [18**0.5, 0.5**0.5]
    np.testing.assert_allclose(np.abs(places), expected, atol=0.01)


def test_a_place_in_the_latent_space_is_named_after_its_offsets(tmp_path, trained):
    run_generate(trained, tmp_path, "--explore", "-2", "0.5")

    assert [path.name for path in (tmp_path / "new").iterdir()] == ["explore--2_0.5.wav"]
    with pytest.raises(UserError, match="there are 7 directions to explore, got 9"):
        run_generate(trained, tmp_path, "--explore", *["1"] * 9)


def test_new_music_needs_tracks_that_differ(tmp_path):
    match = r"there is no .*prior\.npz: it needs training steps that differ; preprocess more audio"
    with pytest.raises(FileNotFoundError, match=match):
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
        TrainingTracks.load(tmp_path)


def test_page_escapes_what_it_shows(tmp_path):
    title = "<script>alert('x')</script>"
    tone = make_tone(440, 0.3)
    item = Item("a b#1", title, {"new": 3 * tone}, {"nearest training audio": title})
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
    assert browser.execute_script("return document.images.length") == 6
    browser.save_screenshot(os.environ.get("SCREENSHOT", str(tmp_path / "page.png")))
