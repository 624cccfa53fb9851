"""python generate.py app, through a real browser: every tab makes a sound, which is read back."""

import base64
import io
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile

from helpers import ROOT, SAMPLE_RATE, name_folders, read_csv

pytest.importorskip("gradio")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

WAIT_S = 120
TABS = {  # {name: (button or None, seconds of its sound)}
    "New piece": ("Make", 0.3),
    "Compose": ("Compose", 3.0),
    "Loop": ("Make a loop", 6.0),
    "Continue": ("Continue", 3.3 + 2),
    "Fill": ("Fill", 3.3),
    "Explore": (None, 0.3),
    "Morph": ("Morph", 3.3 + 4 + 3.3),
    "Through the model": ("Send it through", 3.3),
}
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
    samples = tmp_path_factory.mktemp("app") / "samples"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "generate.py", *name_folders(trained), "app"]
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
    for name, (button, seconds) in TABS.items():
        tab = Tab(browser, name)
        n_uploads = {"Continue": 1, "Fill": 1, "Morph": 2, "Through the model": 1}.get(name, 0)
        tab.upload([trained / "song.wav"] * n_uploads)
        if name in ("Compose", "Continue"):
            tab.set_number("number input for Seconds", 3 if name == "Compose" else 2)
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
