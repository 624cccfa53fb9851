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
