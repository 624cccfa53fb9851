import shutil

import filelock
import numpy as np
import pytest
import soundfile

import helpers
import preprocess
import train
from helpers import SAMPLE_RATE

FIT_FLOW = "training.flows.fit_flow"


@pytest.fixture(autouse=True)
def quick_flows(request, monkeypatch):
    """Leaves the flow as it begins, unless a test is marked: to trace its training takes 5 s."""
    if "real_flow" not in request.keywords:
        monkeypatch.setattr(FIT_FLOW, lambda *_: None)


@pytest.fixture(scope="session", autouse=True)
def plain_graphs():
    """TensorFlow computes graphs as they are: to improve them takes longer than their few steps."""
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


@pytest.fixture
def eager():
    """TensorFlow computes op by op, which is sooner done than tracing for up to about 30 steps."""
    with helpers.compute_eagerly():
        yield


@pytest.fixture
def write_audio(tmp_path):
    """Writes a signal, (n_samples,) or (n_samples, n_channels), below tmp_path/audio."""

    def write(name, signal, sample_rate=SAMPLE_RATE, **keywords):
        path = tmp_path / "audio" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, signal, sample_rate, **keywords)
        return path

    return write


@pytest.fixture
def spectrograms(tmp_path):
    """Six random pieces of three tracks, float32 (16, 12) each."""
    rng = np.random.default_rng(0)
    saver = preprocess.Saver(tmp_path / "spectrograms", tmp_path)
    for track in ("a/x.wav", "b/x.wav", "c.wav"):
        for segment in range(2):
            image = rng.random((16, 12), np.float32)
            saver.save_feature(image, f"{track}.{segment:03d}.npy")
    return tmp_path / "spectrograms"


@pytest.fixture(scope="session")
def trained(tmp_path_factory, worker_id):
    """A folder with features of ten short tracks of two genres, and a model of them."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "trained"  # one for all workers
    with filelock.FileLock(f"{folder}.lock"):
        if not (folder / "song.wav").exists():
            train_small(folder)
    return folder


def train_small(folder):
    for track in range(10):
        path = folder / "audio" / ("calm", "wild")[track % 2] / f"{track}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, helpers.make_music(1.2, seed=track), SAMPLE_RATE)
    preprocess.preprocess_folder(
        folder / "audio", folder / "saved_data", helpers.make_settings(), jobs=1
    )
    small = ["--conv_filters", "16", "32", "--latent_space_dim", "12", "--epochs", "3"]
    with pytest.MonkeyPatch.context() as patch, helpers.compute_eagerly():
        patch.setattr(FIT_FLOW, lambda *_: None)
        train.main(
            [*helpers.name_folders(folder), *small, "--no-logs", "--validation_split", "0.2"]
        )
    soundfile.write(folder / "song.wav", helpers.make_music(3.3, seed=99), SAMPLE_RATE)


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
