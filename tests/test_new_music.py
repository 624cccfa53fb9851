"""New music: the prior, the modes, evaluation and the page; the last through a real browser."""

import os
import shutil

import matplotlib.image
import numpy as np
import pytest
import soundfile

import generate
import preprocess
import train
from generation.evaluation import measure_frechet_distance, measure_mel_distance
from generation.modes import Item
from generation.page import Page
from generation.prior import KEY_WINDOWS, Prior, load_training_pieces
from helpers import SAMPLE_RATE, make_music, make_settings, make_tone, read_csv
from support import dataset
from support.errors import UserError


def make_clusters(count=200, seed=0):
    """Two clusters of latents, float32 (count, 6), and their ranges, float32 (count, 2)."""
    rng = np.random.default_rng(seed)
    latents = rng.standard_normal((count, 6)) * [3, 2, 1, 1, 0.5, 0.1]
    latents[: count // 2, 0] += 20
    ranges = np.stack([rng.uniform(-90, -80, count), rng.uniform(0, 10, count)], axis=1)
    return latents.astype(np.float32), ranges.astype(np.float32)


def test_prior_finds_the_clusters_and_draws_from_them():
    latents, ranges = make_clusters()

    prior = Prior(latents, ranges)
    drawn, drawn_ranges = prior.sample(4000, 1, np.random.default_rng(0))

    assert prior.n_components >= 2
    near = drawn[:, 0] > 10
    assert 0.4 < near.mean() < 0.6
    for chosen, cluster in ((near, latents[:100]), (~near, latents[100:])):
        np.testing.assert_allclose(drawn[chosen].mean(axis=0), cluster.mean(axis=0), atol=0.5)
    # The last directions hold less than a hundredth of the variance.
    np.testing.assert_allclose(drawn.std(axis=0)[:2], latents.std(axis=0)[:2], rtol=0.2)
    assert (drawn_ranges >= ranges.min(axis=0)).all() and (drawn_ranges <= ranges.max(axis=0)).all()


def test_temperature_scales_how_far_draws_stray():
    prior = Prior(*make_clusters())

    def spread(temperature):
        drawn, _ = prior.sample(2000, temperature, np.random.default_rng(0))
        near = drawn[drawn[:, 0] > 10]
        return near[:, 0].std()

    assert spread(0) < 0.1 * spread(1)  # the cluster may have several Gaussians
    assert spread(2) == pytest.approx(2 * spread(1), rel=0.15)


def test_walk_is_smooth_and_keeps_its_distance_from_the_mean():
    latents = np.random.default_rng(0).standard_normal((120, 32)).astype(np.float32)
    prior = Prior(latents, make_clusters(120)[1])

    latents, ranges = prior.walk(400, 1, np.random.default_rng(0))
    drawn, _ = prior.sample(400, 1, np.random.default_rng(1))

    assert latents.shape == (400, 32) and ranges.shape == (400, 2)
    steps, jumps = (np.linalg.norm(np.diff(points, axis=0), axis=1) for points in (latents, drawn))
    assert np.median(steps) < 0.5 * np.median(jumps)
    distances = np.linalg.norm(latents - prior.mean, axis=1)
    between, at = (np.median(distances[2::KEY_WINDOWS]), np.median(distances[::KEY_WINDOWS]))
    assert 0.7 < between / at < 1.3


def test_prior_needs_two_pieces():
    with pytest.raises(UserError, match="at least 2 training pieces, got 1"):
        Prior(np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32))


def test_prior_of_two_pieces_draws_finite_ones():
    latents, ranges = make_clusters(2)

    drawn, _ = Prior(latents, ranges).sample(10, 1, np.random.default_rng(0))

    assert np.isfinite(drawn).all()


def test_frechet_distance_is_zero_for_the_same_and_the_shift_for_a_shift():
    mels = [np.random.default_rng(index).normal(-40, 5, (80, 64)) for index in range(20)]

    assert measure_frechet_distance(mels, mels) < 1e-3
    shifted = measure_frechet_distance(mels, [mel + 3 for mel in mels])
    assert shifted == pytest.approx(3 * np.sqrt(80), rel=1e-3)


def test_mel_distance_is_zero_for_itself_and_the_gain_for_a_gain():
    tone = make_music()

    assert measure_mel_distance(tone, tone, SAMPLE_RATE) == 0
    # 6 dB of gain, less if both lie at the floor
    assert 5 < measure_mel_distance(tone, 2 * tone, SAMPLE_RATE) <= 6.03


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with features of ten short tracks of two genres, and a model of them."""
    folder = tmp_path_factory.mktemp("trained")
    for track in range(10):
        path = folder / "audio" / ("calm", "wild")[track % 2] / f"{track}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_music(1.2, seed=track), SAMPLE_RATE)
    preprocess.preprocess_folder(folder / "audio", folder / "saved_data", make_settings(), jobs=1)
    small = ["--conv_filters", "16", "32", "--latent_space_dim", "12", "--epochs", "3"]
    train.main([*name_folders(folder), *small, "--no-logs", "--validation_split", "0.2"])
    soundfile.write(folder / "song.wav", make_music(3.3, seed=99), SAMPLE_RATE)
    return folder


def name_folders(folder):
    return ["--saved_data", str(folder / "saved_data"), "--model", str(folder / "model")]


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
    floor, mean, noise = (
        sets[f"Frechet distance from held-out pieces, {name}, dB"]
        for name in ("training pieces", "mean spectrogram", "noise")
    )
    assert 0 < floor < noise and mean > 0  # so few pieces say little more
    assert [row["value"] for row in rows if row["figure"] == "temperature"] == ["1.0"] * 4
    nearest = [row["value"] for row in rows if row["figure"] == "nearest training piece"]
    keys = {*dataset.list_keys(trained / "saved_data" / "spectrograms")}
    assert len(nearest) == 4 and {*nearest} <= keys


def test_new_pieces_need_no_features(tmp_path, trained, capsys):
    shutil.copytree(trained / "model", tmp_path / "model")

    generate.main(
        ["--model", str(tmp_path / "model"), "--samples", str(tmp_path), "--sample", "1"]
        + ["--saved_data", str(tmp_path / "nowhere")]
    )

    assert len([*(tmp_path / "new").glob("*.wav")]) == 1
    assert "are not compared with training pieces: no settings at" in capsys.readouterr().err


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
        (("--audio_files", "missing.wav"), "missing.wav cannot be opened"),
        (("--audio_files", "saved_data/source.json"), "source.json not readable as audio"),
    ],
)
def test_bad_requests_are_refused(tmp_path, trained, monkeypatch, flags, message):
    monkeypatch.chdir(trained)

    with pytest.raises(UserError, match=message):
        run_generate(trained, tmp_path / "samples", *flags)

    assert not (tmp_path / "samples" / "index.html").exists()


@pytest.mark.parametrize("flags", [("--temperature", "-1"), ("--compose", "0"), ("--sample", "0")])
def test_impossible_numbers_are_refused(trained, capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        generate.main([*flags])

    assert "must be at least" in capsys.readouterr().err


def test_damaged_latents_are_named(tmp_path):
    (tmp_path / "latents.npz").write_bytes(b"rubbish")

    with pytest.raises(UserError, match=r"latents\.npz is damaged"):
        load_training_pieces(tmp_path)


def test_page_escapes_what_it_shows(tmp_path):
    title = "<script>alert('x')</script>"
    tone = make_tone(440, 0.3)
    item = Item("a b#1", title, {"new": 3 * tone}, {}, {"nearest training piece": title})
    page = Page(tmp_path, make_settings())

    page.add(*generate.save_item(item, {"new": tmp_path / "new"}, SAMPLE_RATE))
    page.write({title: title})

    html = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    assert 'src="new/a%20b%231.wav"' in html and (tmp_path / "new" / "a b#1.wav").is_file()
    assert "scaled to avoid clipping" in html
    assert np.abs(soundfile.read(tmp_path / "new" / "a b#1.wav")[0]).max() < 1


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--autoplay-policy=no-user-gesture-required",
        "--window-size=1200,1600",
    ):
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


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
