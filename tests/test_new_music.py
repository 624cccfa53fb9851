"""New music: the prior, long sound, songs, the page; the last through a real browser."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, make_music, make_tone

import generate
import preprocess
from generation.judge import measure_frechet_distance
from generation.page import write_page
from generation.prior import KEY_WINDOWS, Prior, load_training_pieces
from generation.studio import Studio, join_windows
from generation.ways import Item
from support import dataset

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = dataset.Settings(
    dataset.FORMAT_VERSION, SAMPLE_RATE, 256, 64, 0.3, True, "all", preprocess.TOP_DB
)


class Identity:
    """An autoencoder that loses nothing."""

    input_shape = [128, 104, 1]

    def reconstruct(self, images):
        return images, np.zeros((len(images), 1))


def make_studio(autoencoder=None):
    from soundgenerator import SoundGenerator

    n_samples = preprocess.Loader(SAMPLE_RATE, SETTINGS.duration, True).n_samples
    generator = SoundGenerator(
        autoencoder or Identity(), SETTINGS.hop_length, frame_size=SETTINGS.frame_size,
        n_samples=n_samples,
    )  # fmt: skip
    return Studio(generator, SETTINGS)


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
    latents = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    prior = Prior(latents, make_clusters(300)[1])

    latents, ranges = prior.walk(400, 1, np.random.default_rng(0))
    drawn, _ = prior.sample(400, 1, np.random.default_rng(1))

    assert latents.shape == (400, 64) and ranges.shape == (400, 2)
    steps, jumps = (np.linalg.norm(np.diff(points, axis=0), axis=1) for points in (latents, drawn))
    assert np.median(steps) < 0.5 * np.median(jumps)
    distances = np.linalg.norm(latents - prior.mean, axis=1)
    between, at = (
        np.median(distances[2::KEY_WINDOWS]),
        np.median(distances[::KEY_WINDOWS]),
    )
    assert 0.7 < between / at < 1.3


def test_prior_needs_two_pieces():
    with pytest.raises(ValueError, match="at least 2 training pieces, got 1"):
        Prior(np.zeros((1, 3), np.float32), np.zeros((1, 2), np.float32))


def test_prior_of_two_pieces_draws_finite_ones():
    latents, ranges = make_clusters(2)

    drawn, _ = Prior(latents, ranges).sample(10, 1, np.random.default_rng(0))

    assert np.isfinite(drawn).all()


def test_joined_windows_of_one_spectrogram_give_it_back():
    rng = np.random.default_rng(0)
    whole = rng.uniform(-80, 0, (8, 100, 2)).astype(np.float32)
    windows = [whole[:, start : start + 20] for start in range(0, 81, 10)]

    joined = join_windows(windows, 9, 10, 100)

    np.testing.assert_allclose(joined, whole, atol=1e-4)


def test_joined_windows_have_no_seam():
    rng = np.random.default_rng(0)
    n_frames, hop = 64, 32
    windows = rng.normal(-40, 5, (300, 32, n_frames, 1)).astype(np.float32)

    joined = join_windows(windows, 300, hop, 299 * hop + n_frames)[..., 0]

    level = joined.mean(axis=0)
    flux = np.abs(np.diff(joined, axis=1)).mean(axis=0)
    place = np.arange(hop, 299 * hop)
    border = place % hop < 2
    assert abs(level[place[border]].mean() - level[place[~border]].mean()) < 0.1  # dB
    # Noise that is mixed is smoother than noise alone: by the root of 2 at most.
    assert 0.7 < flux[place[border]].mean() / flux[place[~border]].mean() < 1.42


@pytest.mark.parametrize("n_samples", [3000, 6615, 40000])
def test_a_song_of_any_length_goes_through_the_autoencoder(n_samples):
    music = make_music(2.0)[:n_samples]

    sound, reconstructed, log_spectrogram, error = make_studio().reconstruct(music)

    assert sound.shape == music.shape and error == 0
    loud = log_spectrogram > log_spectrogram.max() - 60
    np.testing.assert_allclose(reconstructed[loud], log_spectrogram[loud], atol=0.5)


def test_frechet_distance_is_zero_for_the_same_and_the_shift_for_a_shift():
    mels = [np.random.default_rng(index).normal(-40, 5, (80, 64)) for index in range(20)]

    assert measure_frechet_distance(mels, mels) < 1e-3
    shifted = measure_frechet_distance(mels, [mel + 3 for mel in mels])
    assert shifted == pytest.approx(3 * np.sqrt(80), rel=1e-3)


def run(folder, script, *flags):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *flags], cwd=folder, text=True, capture_output=True,
        env={**os.environ, "MPLCONFIGDIR": str(folder)},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with features of ten short tracks of two genres, and a model of them."""
    folder = tmp_path_factory.mktemp("trained")
    for track in range(10):
        path = folder / "audio" / ("calm", "wild")[track % 2] / f"{track}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, make_music(1.2, seed=track), SAMPLE_RATE)
    preprocess.run(folder / "audio", folder / "saved_data", SETTINGS, jobs=1)
    done = run(folder, "train.py", "--conv_filters", "16", "32", "--latent_space_dim", "12",
               "--epochs", "3", "--no-logs", "--validation_split", "0.2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    soundfile.write(folder / "song.wav", make_music(3.3, seed=99), SAMPLE_RATE)
    return folder


WAYS = {
    "sample": (("--sample", "3", "--genre", "wild"), 3 * [6615]),
    "compose": (("--compose", "2.5"), [55125]),
    "interpolate": (
        ("--interpolate", "calm/0.wav.000", "wild/1.wav.001", "--steps", "3"),
        [6615, 6615, 6615, 6615 + 2 * 52 * 64],
    ),
    "audio_files": (("--audio_files", "song.wav"), [72765]),
    "components": (("--components", "2"), 2 * [6615 + 4 * 52 * 64]),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_writes_sound_of_the_length_asked_for(tmp_path, trained, way):
    flags, lengths = WAYS[way]

    done = run(trained, "generate.py", *flags, "--samples", str(tmp_path))

    assert done.returncode == 0, done.stderr
    assert "arning" not in done.stderr
    paths = sorted((tmp_path / "new").glob("*.wav"))
    signals = [soundfile.read(path)[0] for path in paths]
    assert sorted(len(signal) for signal in signals) == sorted(lengths)
    for path, signal in zip(paths, signals, strict=True):
        assert 1e-4 < np.abs(signal).max() < 1, path
        assert (tmp_path / "pictures" / "new" / f"{path.stem}.png").stat().st_size > 1000
        assert f"new/{path.name}" in (tmp_path / "index.html").read_text()


def test_new_music_follows_the_seed(tmp_path, trained):
    def make(name, seed):
        done = run(trained, "generate.py", "--sample", "2", "--compose", "1", "--seed", seed,
                   "--samples", str(tmp_path / name))  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [path.read_bytes() for path in sorted((tmp_path / name / "new").glob("*.wav"))]

    first, again, other = make("a", "1"), make("b", "1"), make("c", "2")

    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_new_pieces_are_compared_with_training_and_held_out_ones(tmp_path, trained):
    run(trained, "generate.py", "--sample", "4", "--samples", str(tmp_path))

    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    sets = {row["figure"]: float(row["value"]) for row in rows if row["item"] == "all new pieces"}
    floor, mean, noise = (
        sets[f"Frechet distance from held-out pieces, {name}, dB"]
        for name in ("training pieces", "mean spectrogram", "noise")
    )
    assert 0 < floor < noise and mean > 0  # so few pieces tell little more
    assert [row["value"] for row in rows if row["figure"] == "temperature"] == ["1.0"] * 4
    nearest = [row["value"] for row in rows if row["figure"] == "nearest training piece"]
    keys = {*dataset.list_keys(trained / "saved_data" / "spectrograms")}
    assert len(nearest) == 4 and {*nearest} <= keys


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--sample", "1", "--genre", "wilt"), "no genre is called 'wilt': there is wild"),
        (("--interpolate", "calm/0.wav.000", "calm/0.wav.00"), "there is calm/0.wav.00"),
        (("--audio_files", "missing.wav"), "missing.wav cannot be opened"),
        (("--audio_files", "saved_data/source.json"), "source.json not readable as audio"),
    ],
)
def test_bad_requests_get_one_line(tmp_path, trained, flags, message):
    done = run(trained, "generate.py", *flags, "--samples", str(tmp_path / "samples"))

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and message in done.stderr
    assert not (tmp_path / "samples" / "index.html").exists()


@pytest.mark.parametrize("flags", [("--temperature", "-1"), ("--compose", "0"), ("--sample", "0")])
def test_impossible_numbers_are_refused(trained, flags):
    done = run(trained, "generate.py", *flags)

    assert done.returncode == 2 and "must be at least" in done.stderr


def test_damaged_latents_are_named(tmp_path):
    (tmp_path / "latents.npz").write_bytes(b"rubbish")

    with pytest.raises(ValueError, match=r"latents\.npz is damaged"):
        load_training_pieces(tmp_path)


def test_page_escapes_what_it_shows(tmp_path):
    title = "<script>alert('x')</script>"
    tone = make_tone(440, 0.3)
    item = Item("a b#1", title, {"new": 3 * tone}, {}, {"nearest training piece": title})

    write_page(tmp_path, [generate.write_item(tmp_path, item, SETTINGS)], {title: title})

    page = (tmp_path / "index.html").read_text()
    assert "<script>alert" not in page and page.count("&lt;script&gt;") == 5
    assert 'src="new/a%20b%231.wav"' in page and (tmp_path / "new" / "a b#1.wav").is_file()
    assert "scaled to avoid clipping" in page
    assert np.abs(soundfile.read(tmp_path / "new" / "a b#1.wav")[0]).max() < 1


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no chromium with its chromedriver here")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--autoplay-policy=no-user-gesture-required",
                 "--window-size=1200,1600"):  # fmt: skip
        options.add_argument(flag)
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


def test_page_plays_and_shows_everything_in_a_browser(tmp_path, trained, browser):
    from selenium.webdriver.support.ui import WebDriverWait

    done = run(trained, "generate.py", "--num_spectrograms", "2", "--samples", str(tmp_path))
    assert done.returncode == 0, done.stderr

    browser.get((tmp_path / "index.html").as_uri())
    browser.execute_script("for (const i of document.images) i.loading = 'eager'")
    wait = WebDriverWait(browser, 30)
    wait.until(lambda b: b.execute_script(
        "return [...document.images].every(i => i.complete && i.naturalWidth > 0)"
    ))  # fmt: skip
    browser.execute_script("window.all = [...document.querySelectorAll('audio')]")
    browser.execute_script("all[0].loop = true; all[0].play()")
    wait.until(lambda b: b.execute_script("return all[0].currentTime > 0.05"))
    browser.execute_script("all[1].loop = true; all[1].play()")
    wait.until(lambda b: b.execute_script("return all[1].currentTime > 0.05"))

    assert browser.execute_script("return all.map(a => a.paused)") == [True, False] + [True] * 4
    assert browser.execute_script("return document.images.length") == 6
    browser.save_screenshot(os.environ.get("SCREENSHOT", str(tmp_path / "page.png")))
