"""python generate.py app, mostly through a real browser: every tab makes a sound, which is read
back."""

import base64
import io
import itertools
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import generate
import generation.app
from generation import scripts
from generation.app import build_app, limit_level
from generation.modes import CHUNK_S
from helpers import ROOT, SAMPLE_RATE, find_free_port, name_folders, read_csv, write_tracks
from support.errors import UserError
from support.prior import TEMPERATURE

pytest.importorskip("gradio")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

WAIT_S = 300
PATHS = f"import sys; sys.path[:0] = {[str(ROOT), str(ROOT / 'tests')]!r}\n"
SCRIPTS = {  # the app, and what it runs in place of the scripts that take longer
    "generate": """import generate, pathlib
from generation import scripts
scripts.ROOT = pathlib.Path(__file__).parent
generate.run_script(generate.main)
""",
    "preprocess": """import helpers, preprocess
preprocess.main([*sys.argv[1:], *helpers.make_flags(), "--jobs", "1"])
""",
    "train": """import shutil, train
options = train.get_parser().parse_args()
shutil.copytree("TRAINED/model", options.model)
(options.model / "logs").mkdir()
shutil.copy("TRAINED/song.wav", options.model / "logs" / "reconstructed.wav")
print("epoch 1/1: training loss 0.5, 1.0 s")
""",
}
TABS = {  # {name: (button or None, seconds to ask for or None, seconds of its sound)}
    "New piece": ("Make", None, 0.3),
    "Compose": ("Compose", 1, 1.0),
    "Loop": ("Make a loop", 1, 1.0),
    "Continue": ("Continue", 1, 3.3 + 1),
    "Fill": ("Fill", None, 3.3),
    "Explore": (None, None, 0.3),
    "Morph": ("Morph", 0.5, 3.3 + 0.5 + 3.3),
    "Through the model": ("Send it through", None, 3.3),
}
READ_END = "return window.player?.stop ?? 0"  # of endless music, in samples
READ_SOUND = """
const done = arguments[arguments.length - 1];
fetch(arguments[0]).then(r => r.arrayBuffer()).then(data => {
  let text = ""; for (const byte of new Uint8Array(data)) text += String.fromCharCode(byte);
  done(btoa(text));
}).catch(error => done("error: " + error));
"""


@pytest.fixture(scope="module")
def app(trained, tmp_path_factory):
    """(address, folder of samples) of a running app."""
    folder = tmp_path_factory.mktemp("app")
    samples = folder / "samples"
    for name, text in SCRIPTS.items():
        (folder / f"{name}.py").write_text(PATHS + text.replace("TRAINED", str(trained)))
    port = find_free_port()
    command = [sys.executable, folder / "generate.py", *name_folders(trained), "app"]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port)}
    process = subprocess.Popen([*command, "--samples", samples], env=environment)
    stop = time.monotonic() + WAIT_S
    while time.monotonic() < stop and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}", samples
    process.terminate()
    process.wait(WAIT_S)


class Tab:
    """One tab of the app in a browser."""

    def __init__(self, browser, name):
        self.browser, self.wait = browser, WebDriverWait(browser, WAIT_S)
        # What is done before the page knows its model is undone when it does.
        self.wait.until(lambda b: "The model in" in b.find_element(By.TAG_NAME, "body").text)
        self.wait.until(lambda b: self._find("//button[@role='tab']", name))
        self._find("//button[@role='tab']", name)[0].click()
        (self.panel,) = self.wait.until(
            lambda b: [
                p for p in b.find_elements(By.XPATH, "//*[@role='tabpanel']") if p.is_displayed()
            ]
        )

    def _find(self, path, text, parent=None):
        elements = (parent or self.browser).find_elements(By.XPATH, path)
        return [each for each in elements if each.is_displayed() and each.text == text]

    def press(self, name):
        self.wait.until(lambda b: self._find(".//button", name, self.panel))[0].click()

    def upload(self, paths):
        for path in paths:  # a field that has its file is replaced by a player
            fields = self.panel.find_elements(By.XPATH, ".//input[@type='file']")
            n_left = len(fields)
            fields[0].send_keys(str(path))
            self.wait.until(
                lambda b, n=n_left: (
                    len(self.panel.find_elements(By.XPATH, ".//input[@type='file']")) < n
                )
            )

    def set_number(self, label, value):
        script = """
        const field = arguments[0];
        field.value = arguments[1];
        for (const kind of ["input", "change", "pointerup", "blur"])
          field.dispatchEvent(new Event(kind, {bubbles: true}));
        """
        field = self.panel.find_element(By.XPATH, f".//input[@aria-label='{label}']")
        self.browser.execute_script(script, field, str(value))

    def write(self, label, text):
        path = f".//label[contains(., '{label}')]//*[self::input or self::textarea]"
        field = self.panel.find_element(By.XPATH, path)
        field.clear()
        field.send_keys(str(text))

    def wait_for(self, text):
        """Wait until the tab, or one of its fields, shows a text."""
        script = "return [arguments[0].innerText, ...[...arguments[0].querySelectorAll('textarea')]"
        script += ".map(field => field.value)].join()"
        self.wait.until(lambda b: text in b.execute_script(script, self.panel))

    def read_command(self):
        """The command that the tab shows, once it does."""
        path = ".//label[contains(., 'command that makes it again')]//textarea"
        read = lambda b: self.panel.find_element(By.XPATH, path).get_property("value")  # noqa: E731
        return self.wait.until(read)

    def read_sound(self):
        """(signal, rate) of the tab's last player."""
        path = ".//a[@download and contains(@href, '.wav')]"
        links = self.wait.until(lambda b: self.panel.find_elements(By.XPATH, path))
        text = self.browser.execute_async_script(READ_SOUND, links[-1].get_attribute("href"))
        return soundfile.read(io.BytesIO(base64.b64decode(text)))


@pytest.mark.slow
def test_a_page_of_another_site_is_refused(app):
    request = urllib.request.Request(app[0], headers={"Host": "evil.example"})

    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=WAIT_S)


@pytest.mark.slow
def test_every_tab_makes_a_sound_that_can_be_kept(app, trained, browser, tmp_path):
    address, samples = app
    browser.set_script_timeout(WAIT_S)
    browser.get(address)
    tab = Tab(browser, "Continue")
    tab.press("Continue")
    message = "upload a recording, or make one with the microphone"
    WebDriverWait(browser, WAIT_S).until(lambda b: message in b.page_source)
    for name, (button, asked, seconds) in TABS.items():
        tab = Tab(browser, name)
        n_uploads = {"Continue": 1, "Fill": 1, "Morph": 2, "Through the model": 1}.get(name, 0)
        tab.upload([trained / "song.wav"] * n_uploads)
        if asked:
            tab.set_number("number input for Seconds", asked)
        if button:
            tab.press(button)
        else:
            tab.set_number("number input for Direction 1", 2)

        command = tab.read_command()
        signal, sample_rate = tab.read_sound()

        assert sample_rate == SAMPLE_RATE and np.abs(signal).max() > 0.01, name
        assert len(signal) / sample_rate == pytest.approx(seconds, abs=0.05), name
        assert command.startswith("python generate.py --model")
    browser.save_screenshot(os.environ.get("SCREENSHOT", str(tmp_path / "app.png")))
    tab.press("Keep it")
    WebDriverWait(browser, WAIT_S).until(lambda b: [*samples.glob("uploads/*/song.wav")])
    rows = read_csv(samples / "metrics.csv")
    (kept,) = (row["value"] for row in rows if row["figure"] == "command")
    path = re.search(r"songs (\S+)", kept)[1]
    assert Path(path).read_bytes() == (trained / "song.wav").read_bytes()
    assert Path(path).parents[1] == samples / "uploads"


@pytest.mark.slow
def test_endless_music_plays_until_it_is_stopped(app, browser):
    browser.get(app[0])
    tab = Tab(browser, "Endless")

    tab.press("Play")
    is_heard = lambda b: (b.execute_script(READ_END) or 0) > 1.5 * CHUNK_S * SAMPLE_RATE  # noqa: E731
    assert tab.wait.until(is_heard)
    tab.press("Stop")

    assert tab.wait.until(lambda b: b.execute_script("return window.player === null"))


@pytest.mark.slow
def test_what_is_changed_while_endless_music_plays_is_heard_soon(browser, monkeypatch):
    def play(get_composer):
        for number in itertools.count():
            yield np.full(1600, get_composer(number).temperature / 2, np.float32)

    monkeypatch.setattr(generation.app, "compose_endlessly", play)
    prior = SimpleNamespace(genres=np.array(["calm"]), find_directions=lambda: [0])
    settings = SimpleNamespace(sample_rate=8000)
    how = {"prior": prior, "settings": settings, "make_generator": lambda seed, detail: None}
    sources = SimpleNamespace(model="model", **how)
    folders = ("model", None), ("saved_data", "model")
    app = build_app(lambda *_: (sources, []), lambda *_: [], None, *folders)
    _, address, _ = app.launch(prevent_thread_lock=True, quiet=True)
    heard = """const texts = [...document.querySelectorAll("textarea")].map(field => field.value);
    const bytes = atob((texts.find(text => text.includes(" 8000 1 ")) ?? "").split(" ")[3] ?? "");
    return (bytes.charCodeAt(3000) + 256 * bytes.charCodeAt(3001)) / 32767"""
    try:
        browser.get(address)
        tab = Tab(browser, "Endless")

        tab.press("Play")
        assert tab.wait.until(
            lambda b: b.execute_script(heard) == pytest.approx(TEMPERATURE / 2, abs=0.01)
        )
        tab.set_number("number input for Temperature", 0.3)
        assert tab.wait.until(lambda b: b.execute_script(heard) == pytest.approx(0.15, abs=0.01))
    finally:
        app.close()


@pytest.mark.slow
def test_a_model_is_trained_on_the_page_and_then_played_with(app, browser, tmp_path):
    write_tracks(tmp_path / "music", 3, duration=3.0)
    browser.get(app[0])
    tab = Tab(browser, "Train")
    tab.write("Folder of music on this machine", tmp_path / "music")
    tab.write("--saved_data", tmp_path / "features")
    tab.write("--model", tmp_path / "model")
    tab.press("Count")
    tab.wait_for("3 files, 30 pieces, 0.00 h of audio, 0 skipped")
    tab.wait_for("training takes about 5 minutes on two cores")

    tab.write("More flags of train.py", "--epochs 1 --split 'my split.json'")
    tab.press("Start")
    tab.wait_for("epoch 1/1: training loss")
    assert len(tab.read_sound()[0]) / SAMPLE_RATE == pytest.approx(3.3, abs=0.05)
    title = f"The model in {tmp_path / 'model'}"
    tab.wait.until(lambda b: title in b.find_element(By.TAG_NAME, "body").text.replace("\n", " "))
    tab = Tab(browser, "New piece")
    tab.press("Make")

    assert f"--model {tmp_path / 'model'}" in tab.read_command()
    signal, _ = tab.read_sound()
    assert len(signal) / SAMPLE_RATE == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("recording, like", [(None, "jazz"), ("a.wav", "a.wav")])
def test_a_tab_shows_all_of_the_command_that_makes_its_sound(recording, like):
    flags = generation.app.tell_new("compose", 60, "jazz", recording, 0.5, 3)

    assert flags == f"compose 60 --like {like} --temperature 0.5 --seed 3".split()
    for style in ("jazz", "-new-"):  # top folders
        flags = generation.app.tell_new("sample", 1, style, None, 0.5, 3)
        assert generate.read_options(flags).like == [style]


def test_a_folder_is_named_or_uploads_are_kept_beside_the_features(tmp_path):
    (tmp_path / "0.wav").write_bytes(b"a")
    kept = f"{tmp_path / 'saved'}_uploads"

    uploads, saved_data = [str(tmp_path / "0.wav")], tmp_path / "saved"

    assert scripts.find_music("music", None, saved_data) == "music"
    for same in (saved_data, f"{saved_data}/"):
        assert scripts.find_music("", uploads, same) == kept
    assert Path(kept, "0.wav").read_bytes() == b"a"
    for folder, files in (("", None), ("music", uploads)):
        with pytest.raises(UserError, match="name a folder of music, or upload some"):
            scripts.find_music(folder, files, saved_data)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """A Script that runs those of tmp_path: one that waits for Ctrl-C, and two that end."""
    wait = "import sys, time\nprint('begun', flush=True)\n"
    wait += "try: time.sleep(60)\nexcept KeyboardInterrupt: sys.exit('interrupted')\n"
    texts = {"wait": wait, "succeed": "print('done')", "fail": "raise SystemExit('error: no')"}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(scripts, "ROOT", tmp_path)
    monkeypatch.setattr(scripts, "POLL_S", 0.01)
    monkeypatch.setattr(scripts, "END_S", 0.01)
    return scripts.Script()


def test_a_script_is_interrupted_as_by_ctrl_c_and_only_one_runs(script):
    script.start("wait.py", [])
    printed = script.follow()
    while "begun" not in next(printed):
        pass

    with pytest.raises(UserError, match="a script is running here"):
        script.start("wait.py", [])
    script.stop()

    assert [*printed][-1] == "$ python wait.py\nbegun\ninterrupted\n"


def test_what_is_to_follow_a_script_follows_it_if_it_ends_well(script):
    ended = []
    for name in ("succeed", "fail"):
        script.start(f"{name}.py", ["--model", "a b"], lambda name=name: ended.append(name))
        (*_, text) = script.follow()

    assert ended == ["succeed"] and text.endswith("$ python fail.py --model 'a b'\nerror: no\n")


def test_the_losses_of_what_trains_last_are_drawn():
    text = "epoch 0/2: validation loss 0.5\nepoch 1/2: training loss 0.4, validation loss 0.3, 1 s"
    later = f"{text}\ndetail: 7 parameters\nepoch 0/3: training loss 0.9\n"

    lines = [scripts.plot_losses(each).axes[0].lines for each in (text, later)]

    assert scripts.plot_losses("$ python train.py\n") is None
    drawn = [{line.get_label(): line.get_xydata().tolist() for line in each} for each in lines]
    assert drawn[0] == {"validation": [[0, 0.5], [1, 0.3]], "training": [[1, 0.4]]}
    assert drawn[1] == {"training": [[0, 0.9]]}


@pytest.mark.parametrize("hours, time", [(0.2, "5 minutes"), (1, "half"), (10, "hour and a half")])
def test_the_user_is_told_what_to_expect(hours, time):
    text = f"3 files, 3 pieces, {hours:.2f} h of audio, 0 skipped\n"

    assert time in scripts.describe_prospects(text)


def test_music_that_gets_louder_does_not_clip_for_long_nor_jump():
    chunks = [np.full(SAMPLE_RATE, level, np.float32) for level in (1, 4, 1, 1)]

    made = [*limit_level(iter(chunks), SAMPLE_RATE)]

    factors = np.concatenate([m[0] / c for m, c in zip(made, chunks, strict=True)])
    assert np.abs(np.diff(factors)).max() < 1e-3  # of a whole
    assert [m[0, -1] for m in made] == pytest.approx([1, 1, 0.275, 0.3025])
    assert (np.abs(made[1][0]) > 1).sum() <= 0.05 * SAMPLE_RATE + 1
