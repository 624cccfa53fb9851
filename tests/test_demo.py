import runpy

import numpy as np
import pytest
import soundfile

from helpers import ROOT


@pytest.fixture
def prepare():
    return runpy.run_path(str(ROOT / "data" / "demo" / "prepare.py"))


def test_demo_has_ten_styles_that_differ(tmp_path, prepare, monkeypatch):
    monkeypatch.setitem(prepare["render_clip"].__globals__, "CLIP_S", 4.0)  # to take less time

    prepare["main"](["--folder", str(tmp_path), "--clips", "1"])

    paths = sorted(tmp_path.rglob("*.wav"))
    brightness = []
    for path in paths:
        signal, _ = soundfile.read(path)
        power = np.abs(np.fft.rfft(signal)) ** 2
        brightness.append((power * np.arange(len(power))).sum() / power.sum())
        assert np.isfinite(signal).all() and 0.7 < np.abs(signal).max() <= 0.81
    assert len({path.parent.name for path in paths}) == 10
    assert max(brightness) > 2 * min(brightness)


def test_demo_is_the_same_for_the_same_seed(prepare):
    style = prepare["STYLES"]["jazz"]

    first, again, other = (
        prepare["render_clip"](style, 60, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )

    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def interrupt_after(n_clips, prepare, monkeypatch):
    """Make the rendering of a clip after so many raise KeyboardInterrupt, and the others fast."""
    rendered = []

    def render_clip(*arguments):
        if len(rendered) == n_clips:
            raise KeyboardInterrupt
        rendered.append(arguments)
        return np.zeros(10, np.float32)

    monkeypatch.setitem(prepare["render"].__globals__, "render_clip", render_clip)


def test_an_interrupted_demo_set_is_rendered_whole_the_next_time(tmp_path, prepare, monkeypatch):
    interrupt_after(7, prepare, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prepare["render"](tmp_path / "audio")
    assert not (tmp_path / "audio").exists()
    interrupt_after(30, prepare, monkeypatch)

    prepare["render"](tmp_path / "audio")

    assert [path.name for path in tmp_path.iterdir()] == ["audio"]
    assert len([*tmp_path.rglob("*.wav")]) == 30


def test_clips_that_are_there_stay_and_others_join_them_all_at_once(tmp_path, prepare, monkeypatch):
    mine = tmp_path / "audio" / "jazz" / "jazz.00001.wav"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    interrupt_after(7, prepare, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        prepare["render"](tmp_path / "audio")
    assert [*(tmp_path / "audio").rglob("*.wav")] == [mine]
    interrupt_after(29, prepare, monkeypatch)

    prepare["render"](tmp_path / "audio")

    assert len([*(tmp_path / "audio").rglob("*.wav")]) == 30
    assert mine.read_bytes() == b"mine"
