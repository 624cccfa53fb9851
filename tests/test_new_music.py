"""New music: the prior, the modes, evaluation and the page; the last through a real browser."""

import os
import re
import runpy
import shutil
import struct

import matplotlib.image
import numpy as np
import pytest
import soundfile

import generate
import train
from generation import evaluation, modes
from generation.evaluation import load_held_out, measure_mel_distance
from generation.modes import Composer, compose_endlessly
from generation.sources import Sources
from helpers import (
    ROOT,
    SAMPLE_RATE,
    make_music,
    make_tone,
    make_tracks,
    name_folders,
    read_all,
    read_csv,
)
from preprocess import make_pipeline
from support import dataset, files
from support import prior as prior_module
from support.dataset import load_split
from support.errors import UserError
from support.prior import Prior
from support.tracks import TrainingTracks
from training.outputs import describe_tracks


def test_mel_distance_is_zero_for_itself_and_the_gain_for_a_gain():
    tone = make_music()

    assert measure_mel_distance(tone, tone, SAMPLE_RATE) == 0
    # 6 dB of gain, less if both lie at the floor
    assert 5 < measure_mel_distance(tone, 2 * tone, SAMPLE_RATE) <= 6.03
    first, second = (np.random.default_rng(seed).standard_normal(30000) for seed in (0, 1))
    single = measure_mel_distance(first, second, SAMPLE_RATE)  # of noise that scatters
    assert measure_mel_distance(first, second, SAMPLE_RATE, pooled_frames=8) < single / 2


@pytest.fixture(scope="module", autouse=True)
def sources(trained):
    """The Sources of `trained`, which are read, and whose networks are traced, once in this file:
    that takes seconds."""
    folder, find_sources = trained / "model", generate.find_sources
    sources = Sources(folder, dataset.Features.of(trained / "saved_data"))

    def find(options):
        is_trained = options.model == folder and options.saved_data == trained / "saved_data"
        return sources if is_trained else find_sources(options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "find_sources", find)
        yield sources


def run_generate(folder, samples, *flags):
    generate.main([*name_folders(folder), "--samples", str(samples), *flags])


MODES = {
    "sample": (("sample", "3", "--like", "wild"), 3 * [6615]),
    "compose": (("compose", "2.5", "--like", "song.wav", "--toward", "calm"), [55125]),
    "beats": (("loop", "2", "--bpm", "100"), [3 * 13230]),
    "before": (("continue", "song.wav", "-1.5"), [72765 + 33075]),
    "interpolate": (("interpolate", "calm/0.wav.000", "song.wav", "0.5"), [6615 + 11025 + 72765]),
    "songs": (("songs", "song.wav"), [72765]),
    "tour": (("tour", "2"), 2 * [5 * 6615]),
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


def test_latents_of_a_track_are_those_of_its_recording(trained, sources):
    generator, features = sources.make_generator(0, with_detail=False), sources.features
    keys = [key for key in features.keys if dataset.get_track(key) == "calm/0.wav"]

    tracks, (first,) = describe_tracks(
        generator.autoencoder, train.make_windows(features, keys, None, 8), keys, SAMPLE_RATE
    )
    signal = make_pipeline(sources.settings).loader.load_whole(trained / "audio" / "calm" / "0.wav")
    latents, min_max = generator.encode(signal)

    assert len(first) == 4 * 52  # of pieces, of which the last one is filled up
    assert 0 <= len(first) - len(latents) <= 1 and abs(tracks.peaks[0] - min_max["max"]) < 0.5
    inner = slice(2, 49)  # of the first piece: later ones lie beside whole frames of the track
    differences = np.square(first[inner] - latents[inner]).mean(axis=0)
    assert (differences < 1e-3 * np.var(latents[inner], axis=0)).all()


@pytest.mark.parametrize("start_s", [4.5, 0])  # 0: as half a frame may be longer
def test_a_loop_goes_on_where_it_is_repeated(tmp_path, trained, monkeypatch, start_s):
    monkeypatch.setattr(modes, "LOOP_START_S", start_s)
    run_generate(trained, tmp_path, "loop", "2")

    (path,) = (tmp_path / "new").glob("loop-*.wav")
    signal, _ = soundfile.read(path)
    assert len(signal) == 44100
    steps = np.abs(np.diff(signal))
    assert abs(signal[0] - signal[-1]) < np.quantile(steps, 0.999)
    data = path.read_bytes()
    place = data.index(b"smpl")
    n_loops, *_, first, last = struct.unpack_from("<I4x2I2I", data, place + 8 + 28)
    assert (n_loops, first, last) == (1, 0, len(signal) - 1)
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8


def test_a_loop_comes_back_in_the_style_that_it_began_in(trained, sources, monkeypatch):
    generator, ways = sources.make_generator(0, with_detail=False), []
    monkeypatch.setattr(modes, "follow", lambda places, count: ways.append(places) or places[[0]])
    composer = Composer(generator, sources.prior, ("wild",), "calm")

    (item,) = composer.loop(1.0)

    assert "toward calm" in item.figures["in the manner of"]
    np.testing.assert_array_equal(ways[1], ways[0][::-1])


def test_a_recording_may_be_new_as_a_whole_or_too_short_to_tell_its_style(tmp_path, trained):
    soundfile.write(tmp_path / "short.wav", make_music(0.02), SAMPLE_RATE)

    run_generate(trained, tmp_path / "a", "fill", str(trained / "song.wav"), "0", "3.3")
    run_generate(trained, tmp_path / "b", "continue", str(tmp_path / "short.wav"), "1")

    for folder, seconds in (("a", 3.3), ("b", 1.02)):
        (path,) = (tmp_path / folder / "new").glob("*.wav")
        assert soundfile.info(path).duration == pytest.approx(seconds, abs=1e-3)


def test_a_recording_is_new_between_two_times(tmp_path, trained):
    run_generate(trained, tmp_path, "fill", str(trained / "song.wav"), "1", "2")

    recorded, new = (
        soundfile.read(next((tmp_path / kind).glob("*.wav")))[0] for kind in ("recorded", "new")
    )
    assert len(new) == 72765
    gap = slice(22050 - 128, 44100 + 128)  # half a frame more than a second
    np.testing.assert_allclose(np.delete(new, gap), np.delete(recorded, gap), atol=2**-14)
    assert np.abs(new - recorded)[22050:44100].max() > 0.01


def test_new_music_follows_the_seed_however_much_is_made(tmp_path, trained):
    def make(command, count, seed):
        folder = tmp_path / f"{command}-{count}-{seed}"
        run_generate(trained, folder, command, str(count), "--seed", str(seed))
        return [path.read_bytes() for path in sorted((folder / "new").glob("*.wav"))]

    two, three, other = (make("sample", *each) for each in ((2, 1), (3, 1), (2, 2)))
    one_long, other_long = (make("compose", 2, seed) for seed in (1, 2))

    assert len(two) == 2 and len(three) == 3 and two == three[:2]
    assert not {*two, *one_long} & {*other, *other_long}


def test_new_pieces_are_compared_with_training_and_held_out_ones(tmp_path, trained):
    run_generate(trained, tmp_path, "sample", "4")

    rows = read_csv(tmp_path / "metrics.csv")
    sets = {row["figure"]: float(row["value"]) for row in rows if row["item"] == "all new pieces"}
    kinds = ("noise", "training pieces", "reconstructions", "new pieces")
    noise, training, *_ = (sets[f"kernel distance from held-out pieces, {name}"] for name in kinds)
    assert training < 0.3 * noise
    noise, _, reconstructions, _ = (sets[f"share of held-out pieces near {name}"] for name in kinds)
    assert noise == 0 and reconstructions > 0.5
    assert [row["value"] for row in rows if row["figure"] == "temperature"] == ["1.0"] * 4
    nearest = [row["value"] for row in rows if row["figure"] == "nearest training audio"]
    tracks = {*load_split(trained / "model" / "split.json")["train"]}
    assert len(nearest) == 4 and {text.rpartition(" at ")[0] for text in nearest} <= tracks


def test_pieces_like_a_genre_are_compared_within_it(tmp_path, trained, sources, capsys):
    tracks = TrainingTracks.load(trained / "model")

    run_generate(trained, tmp_path, "sample", "1", "--like", "wild")
    printed, generator = capsys.readouterr().out, sources.make_generator(0, with_detail=True)
    wild, changing = (
        evaluation.make_evaluator(generator, sources, {"like": "wild", **more})
        for more in ({}, {"toward": "calm"})
    )

    assert "4 held-out pieces, the sets of wild alone" in printed
    assert sum(map(len, wild._floor)) == tracks.n_steps[tracks.genres == "wild"].sum()
    assert sum(map(len, changing._floor)) == tracks.n_steps.sum()


def test_the_form_of_long_pieces_is_compared_with_that_of_training_tracks(
    tmp_path, trained, monkeypatch
):
    monkeypatch.setattr(evaluation, "FORM_S", 0.9)  # of tracks of four pieces of 0.3 s

    run_generate(trained, tmp_path, "compose", "3")

    rows = read_csv(tmp_path / "metrics.csv")
    kind = "kernel distance of 0.9 s from training tracks"
    new, other = (
        float(next(row["value"] for row in rows if row["figure"] == f"{kind}, {name}"))
        for name in ("new pieces", "other training tracks")
    )
    assert other < new


def test_pairs_are_recorded_inverted_and_reconstructed(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(modes, "BATCH_SIZE", 2)

    run_generate(trained, tmp_path, "pairs", "--count", "5")

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

    generate.main(["--model", str(trained / "model"), "pairs", "--count", "2"])

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
        (("sample", "1", "--like", "wilt"), "genre or training track is called 'wilt', but: wild"),
        (("interpolate", "calm/0.wav.000", "calm/0.wav.00", "1"), "but: calm/0.wav.00"),
        (("fill", "song.wav", "2", "1"), "FROM < TO <= 3.30 s, the length of song.wav"),
        (("continue", "missing.wav", "2"), "missing.wav: cannot be opened"),
        (("continue", "song.wav", "0"), "continue needs more or less than 0 seconds"),
    ],
)
def test_bad_requests_are_refused(tmp_path, trained, monkeypatch, flags, message):
    monkeypatch.chdir(trained)

    with pytest.raises(UserError, match=message):
        run_generate(trained, tmp_path / "samples", *flags)

    assert not (tmp_path / "samples" / "index.html").exists()


def test_songs_that_cannot_be_read_cost_only_themselves(tmp_path, trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    cut, short = (str(tmp_path / name) for name in ("cut.wav", "short.wav"))
    songs = ["missing.wav", "saved_data/source.json", cut, short]
    data = (trained / "song.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) * 2 // 3])
    soundfile.write(tmp_path / "short.wav", np.ones(1), 192_000)

    with pytest.raises(UserError, match="3 songs could not be read"):
        run_generate(trained, tmp_path / "samples", "songs", *songs)

    printed, errors = capsys.readouterr()
    missing, not_audio, shortage, short = errors.splitlines()
    assert missing.startswith("skipped missing.wav: cannot be opened")
    assert not_audio.startswith("skipped saved_data/source.json: not readable as audio")
    assert "cut.wav ends 1.1 s before the length that its header gives" in shortage
    assert "cut.wav (ends 1.1 s before the length" in printed
    assert "short.wav: holds no samples" in short  # at 22050 Hz
    (path,) = (tmp_path / "samples" / "new").glob("*.wav")
    assert path.name.startswith("song-cut.wav-")


def test_a_folder_of_songs_is_sent_through_whole(tmp_path, trained, capsys):
    (tmp_path / "songs" / "deep").mkdir(parents=True)
    (tmp_path / "songs" / "cover.jpg").write_text("no song")
    shutil.copy(trained / "song.wav", tmp_path / "songs" / "a.wav")
    soundfile.write(tmp_path / "songs" / "deep" / "a.wav", make_music(0.5), SAMPLE_RATE)

    run_generate(trained, tmp_path / "samples", "songs", str(tmp_path / "songs"))

    assert "cover.jpg: not readable as audio" in capsys.readouterr().err
    run_generate(trained, tmp_path / "samples", "songs", str(trained / "song.wav"))
    shutil.copy(trained / "song.wav", tmp_path / "songs" / "song.wav")
    run_generate(trained, tmp_path / "samples", "songs", str(tmp_path / "songs" / "song.wav"))

    names = sorted(path.name for path in (tmp_path / "samples" / "new").glob("*.wav"))
    assert [name[:8] for name in names] == ["song-a.w"] * 2 + ["song-son"]


def test_what_goes_on_after_silence_is_music(tmp_path, trained):
    song = 1e-5 * np.random.default_rng(0).choice([-1, 1], 3 * SAMPLE_RATE)  # below the last bit
    soundfile.write(tmp_path / "silent.wav", song, SAMPLE_RATE, subtype="FLOAT")

    run_generate(trained, tmp_path / "s", "continue", str(tmp_path / "silent.wav"), "1")

    (path,) = (tmp_path / "s" / "new").glob("*.wav")
    assert np.abs(soundfile.read(path)[0][3 * SAMPLE_RATE :]).max() > 0.01


def test_a_recording_goes_on_in_several_ways_each_that_of_its_seed(tmp_path, trained, sources):
    song = str(trained / "song.wav")
    generator, prior = sources.make_generator(1, with_detail=True), sources.prior

    run_generate(trained, tmp_path, "continue", song, "1.5", "--count", "2")
    (again,) = Composer(generator, prior, seed=1).extend(trained / "song.wav", 1.5, 1)

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
    np.testing.assert_allclose(made[1], again.sounds["new"], atol=2**-14)
    players = [item["players"] for item in files.read_json(tmp_path / "items.json")["items"]]
    seconds = [[player["seconds"] for player in each] for each in players]
    assert seconds == [pytest.approx([3.3, 4.8], abs=1e-3)] * 2


def test_a_page_of_others_or_of_a_run_that_goes_on_is_left_alone(tmp_path, trained):
    with files.lock(tmp_path), pytest.raises(UserError, match="another run is writing"):
        run_generate(trained, tmp_path, "sample", "1")
    assert read_all(tmp_path) == {}

    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "index.html").write_text("mine")
    with pytest.raises(UserError, match="was not written here: name another"):
        run_generate(trained, tmp_path / "others", "sample", "1")
    assert read_all(tmp_path / "others") == {"index.html": b"mine"}


def test_runs_of_several_commands_share_one_page(tmp_path, trained):
    run_generate(trained, tmp_path, "--seed", "1", "pairs", "--count", "1")
    run_generate(trained, tmp_path, "sample", "3", "--seed", "1")
    sets = [row for row in read_csv(tmp_path / "metrics.csv") if row["item"] == "all new pieces"]

    run_generate(trained, tmp_path, "tour", "1")

    html = (tmp_path / "index.html").read_text()
    assert html.index("new/component-any-t1") < html.index("new/sample-any-t1-seed1-000.wav")
    rows = read_csv(tmp_path / "metrics.csv")
    assert sets and [row for row in rows if row["item"] == "all new pieces"] == sets
    assert len({row["item"] for row in rows}) == 6  # a pair, three new pieces, all of these, a tour


class Echo:
    """In place of a SoundGenerator and its autoencoder: a sound is what is drawn for it."""

    sample_rate, n_samples, frame_size, input_shape = 10, 4, 2, (2, 3, 1)

    def __init__(self):
        self.autoencoder = self

    def fill(self, signal, begin, end, fill, peak):
        known = np.ones(len(signal), bool)
        known[begin:end] = False
        return fill(np.repeat(signal[:, np.newaxis], 2, axis=1), known), peak


class Styles(Prior):
    """A Prior that draws the style."""

    def fill(self, latents, known, style, *, temperature, rng):
        return np.where(known[:, np.newaxis], latents, style)

    def find_style(self, latents):
        return latents.mean(axis=0)


@pytest.fixture
def prior(monkeypatch):
    """A Prior over two genres, whose styles are 1 and 2, and their peaks too."""
    styles, names = np.array([[1, 0], [2, 0]], np.float32), ["calm/0.wav", "wild/1.wav"]
    fields = Prior.prepare(make_tracks(names, [1, 2]), [np.eye(2)] * 2)
    monkeypatch.setattr(prior_module, "STYLE_NOISE", 0)
    return Styles(*fields)._replace(styles=styles)


def test_new_pieces_are_in_the_style_of_a_track_and_as_loud(prior):
    made = [item.sounds["new"] for item in Composer(Echo(), prior).sample(20)]

    genre_called_none = prior._replace(genres=np.array(["None", "wild"]))
    items = [*Composer(Echo(), genre_called_none).sample(20)]
    assert len({item.figures["in the manner of"] for item in items}) == 2
    styles = {(float(latents[0, 0]), peak) for latents, peak in made}
    assert styles == {(1, 1), (2, 2)} and {len(latents) for latents, _ in made} == {4}


@pytest.mark.parametrize(
    "style, first, last, name",
    [
        ([("wild",)], 2, 2, "wild/1.wav"),
        ([("calm/0.wav", "wild")], 1.5, 1.5, "calm/0.wav and wild/1.wav"),
        ([("calm",), "wild"], 1, 2, "calm/0.wav, toward wild/1.wav"),
    ],
)
def test_a_long_piece_is_in_the_style_asked_for(prior, style, first, last, name):
    (item,) = Composer(Echo(), prior, *style).compose(2.0)

    latents, _ = item.sounds["new"]
    np.testing.assert_allclose(latents[:, 0], np.linspace(first, last, 20), atol=1e-6)
    assert item.figures["in the manner of"] == name


def test_what_fills_a_gap_goes_from_the_style_before_it_to_that_after_it(prior):
    sounds = [np.full(30, level, np.float32) for level in (5, 8)]

    (item,) = Composer(Echo(), prior).interpolate(sounds, ["a", "b"], 2.0)

    latents, _ = item.sounds["new"]
    assert (latents[:30] == 5).all() and (latents[50:] == 8).all()
    assert (np.diff(latents[30:50, 0]) > 0).all() and latents[40, 0] == pytest.approx(6.5, abs=0.1)


def test_a_tour_and_a_place_are_standard_deviations_from_the_mean(prior):
    composer = Composer(Echo(), prior)
    (item,), (place,) = composer.tour(3), composer.explore([3.0])

    along = np.sort(item.sounds["new"][0][:, 0])
    np.testing.assert_allclose(along, 1.5 + np.linspace(-1, 1, 20), atol=1e-6)
    latents, _ = place.sounds["new"]
    assert np.abs(latents[:, 0] - 1.5) == pytest.approx(1.5) and (latents[:, 1] == 0).all()


class Ramp(Echo):
    """One whose sounds rise by 1 from sample to sample, and that knows the styles it was given."""

    def __init__(self):
        super().__init__()
        self.styles = []

    def fill(self, signal, begin, end, fill, peak, is_fixed):
        assert is_fixed
        first, known = max(0, begin - 1), np.arange(len(signal)) < begin
        latents = fill(np.zeros((len(signal), 2)), known)
        self.styles.append((float(latents[-1, 0]), peak))
        rising = np.arange(len(signal) - first) + (signal[first - 1] + 1 if first else 0)
        return np.concatenate([signal[:first], rising])


def test_endless_music_goes_on_where_it_was_and_in_the_style_asked_for_last(prior):
    generator = Ramp()
    styles = ["calm"] * 8 + ["wild"]
    chunks = compose_endlessly(lambda number: Composer(generator, prior, (styles[number],)))

    made = [next(chunks) for _ in styles]

    np.testing.assert_array_equal(np.concatenate(made), np.arange(9 * 15 - 1))
    assert generator.styles == [(1, 1)] * 8 + [(2, 2)]  # and as loud as it


def test_endless_music_of_a_model_joins_without_a_step(sources):
    generator, prior = sources.make_generator(0, with_detail=True), sources.prior
    chunks = compose_endlessly(lambda number: Composer(generator, prior, seed=1))

    made = [next(chunks) for _ in range(3)]

    assert [len(chunk) for chunk in made] == [33075 - 128, 33075, 33075]
    steps = np.abs(np.diff(np.concatenate(made)))
    for joint in np.cumsum([len(chunk) for chunk in made[:2]]):
        assert steps[joint - 1] < 3 * steps[joint - 300 : joint + 300].std() + steps.mean()


def test_what_is_asked_for_is_told_apart_by_its_name(tmp_path):
    jazz = ("jazz",)
    asked = [
        *(
            {},
            {"like": ("any",)},
            {"like": jazz},
            {"like": jazz, "toward": "rock"},
            {"like": ("jazz", "rock")},
        ),
        *({"like": ("jazz+rock",)}, {"like": ("jazz-to-rock",)}),
        *({"like": ("a/x.wav",)}, {"like": ("b/x.wav",)}, {"temperature": 0.5}, {"seed": 1}),
    ]

    labels = {Composer(None, None, **each).label for each in asked}

    assert len(labels) == len(asked) and "jazz-to-rock-t1-seed0" in labels
    assert not re.search(r"[^\w.+-]", "".join(labels)) and "any-t1-seed0" in labels
    for folder, text in (("a", "one"), ("b", "two"), ("c", "one")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "song.mp3").write_text(text)
    first, other, same = (modes.shorten(tmp_path / name / "song.mp3") for name in "abc")
    assert first.startswith("song.mp3-") and first == same != other


def test_new_music_needs_tracks_that_differ(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*prior\.npz: run train.py --resume"):
        _ = Sources(tmp_path, None).prior


def test_music_of_another_model_or_without_detail_has_a_file_of_its_own(tmp_path, trained, capsys):
    shutil.copytree(trained / "model", tmp_path / "other")
    samples = tmp_path / "samples"
    run_generate(trained, samples, "sample", "1")
    capsys.readouterr()
    flags = ["--model", str(tmp_path / "other"), "--saved_data", str(tmp_path / "nowhere")]
    flags += ["--samples", str(samples), "sample", "1"]
    generate.main(flags)
    (line,) = capsys.readouterr().err.splitlines()
    assert "are not compared with held-out ones: there is no" in line
    generate.main([*flags, "--no-detail"])
    name = "sample-any-t1-seed0-000"
    files = [samples / "new" / f"{name}{end}.wav" for end in ("", "-other", "-other-no_detail")]
    model, other, smooth = (path.read_bytes() for path in files)
    assert model == other != smooth
    (tmp_path / "other" / "detail.npz").unlink()
    with pytest.raises(FileNotFoundError, match="no .*detail.npz: run train.py --resume"):
        generate.main(flags)


def test_pieces_that_were_not_trained_on_are_held_out(sources):
    features = sources.features
    held_out = load_split(sources.model / "split.json")["valid"]
    expected = [key for key in features.keys if dataset.get_track(key) in held_out]
    tracks = TrainingTracks.load(sources.model)

    images, genre = load_held_out(sources, tracks, "folk")  # of which there is none
    alike, own = load_held_out(sources, tracks, "wild")

    assert len(images) == len(expected) > 0 and genre is None
    assert len(alike) == sum(dataset.get_genre(key) == "wild" for key in expected) > 0
    assert own == "wild" and len(alike) < len(images)
    for image, key in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image, dataset.load_spectrogram(features.path, key))
    with pytest.raises(UserError, match="is of other audio than .*model was trained on"):
        load_held_out(sources, tracks._replace(peaks=tracks.peaks + 1))


def test_the_pretrained_model_is_used_until_there_is_another(
    trained, tmp_path, monkeypatch, capsys
):
    (tmp_path / "pretrained").mkdir()
    make = runpy.run_path(str(ROOT / "pretrained" / "make.py"))["make"]
    make(trained / "model", tmp_path / "pretrained")
    monkeypatch.setattr(generate, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.chdir(tmp_path)

    generate.main(["sample", "1"])

    printed, errors = capsys.readouterr()
    assert "there is no model yet: this is the pretrained one" in printed
    assert "does not hold its training tracks: nothing tells copies" in errors
    shutil.copytree(trained / "model", tmp_path / "model")
    generate.main(["sample", "1", "--samples", "whole"])
    halved, whole = (
        next((tmp_path / folder / "new").glob("*.wav")) for folder in ("samples", "whole")
    )
    assert halved.stem == f"{whole.stem}-pretrained"  # so that neither takes the place of the other
    assert "pretrained" not in capsys.readouterr().out
    difference = soundfile.read(halved)[0] - soundfile.read(whole)[0]
    assert np.abs(difference).mean() < 0.2 * np.abs(soundfile.read(whole)[0]).mean()


@pytest.mark.slow
def test_the_pretrained_model_makes_music(tmp_path):
    folders = ["--model", str(generate.PRETRAINED), "--samples", str(tmp_path)]

    generate.main([*folders, "sample", "1", "--like", "orchestral"])

    signal, rate = soundfile.read(next((tmp_path / "new").glob("*.wav")))
    assert rate == 22050 and len(signal) == 65488
    assert 0.005 < np.sqrt(np.mean(signal**2)) < 0.5
    assert measure_mel_distance(signal, make_tone(duration=65488 / rate), rate) > 5


@pytest.mark.slow
def test_page_plays_and_shows_everything_in_a_browser(tmp_path, trained, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    run_generate(trained, tmp_path, "pairs", "--count", "2")

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
