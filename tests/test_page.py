"""The page of a folder of samples, and its items.json, over several runs."""

from types import SimpleNamespace

import librosa
import matplotlib
import numpy as np
import pytest

import generate
from generation.modes import Item
from generation.page import Page, plot_spectrogram
from helpers import SAMPLE_RATE, make_settings, make_tone, read_csv
from support import files
from support.errors import UserError

SOUND = {"new": np.zeros(SAMPLE_RATE // 10, np.float32)}


def make_items(*names):
    return [Item(name, f"Piece {name}", SOUND, {"seed": 0}) for name in names]


def run(folder, items, summary=None, kinds=("new",)):
    """What a run of generate.py does with its Items; the Page."""
    page = Page(folder, make_settings())
    save_dirs = {kind: folder / kind for kind in kinds}
    for item in items:
        page.add(*generate.save_item(item, save_dirs, SAMPLE_RATE))
    page.finish(summary or {})
    return page


def list_titles(folder):
    """The titles on the page, from top to bottom."""
    lines = (folder / "index.html").read_text().splitlines()
    return [line.split(">")[1].split("<")[0] for line in lines if 'id="item-' in line]


def test_page_keeps_what_earlier_runs_made_below_the_newest(tmp_path):
    run(tmp_path, make_items("a", "b"), {"distance, dB": 3.5})

    run(tmp_path, make_items("c", "d"))

    assert list_titles(tmp_path) == ["Piece c", "Piece d", "Piece a", "Piece b"]
    rows = [row["item"] for row in read_csv(tmp_path / "metrics.csv")]
    assert rows == ["c", "d", "a", "b", "all new pieces"]
    assert "<dt>distance, dB</dt><dd>3.5</dd>" in (tmp_path / "index.html").read_text()

    (tmp_path / "new" / "a.wav").unlink()
    run(tmp_path, [make_items("d")[0]._replace(title="Piece d again")])

    assert list_titles(tmp_path) == ["Piece d again", "Piece c", "Piece b"]


def test_page_shows_all_that_was_made_before_an_error(tmp_path):
    def make():
        yield from make_items("a", "b")
        raise RuntimeError("the third")

    sound_generator = SimpleNamespace(sample_rate=SAMPLE_RATE)
    sources = SimpleNamespace(settings=make_settings())
    with pytest.raises(RuntimeError, match="the third"):
        generate.save_items(make(), sound_generator, sources, tmp_path)

    assert list_titles(tmp_path) == ["Piece a", "Piece b"]
    assert len(read_csv(tmp_path / "metrics.csv")) == 2


def test_a_picture_shows_each_sound_over_its_own_seconds(tmp_path):
    long, short = make_tone(3000, 3.0), make_tone(3000, 1.0)
    long[:SAMPLE_RATE] = 0
    item = Item("a", "Piece a", {"recorded": short, "new": np.stack([long, long])}, {})

    page = run(tmp_path, [item], kinds=("recorded", "new"))

    assert [player["seconds"] for player in page.made["a"]["players"]] == [1, 3]
    assert all((tmp_path / f"pictures/{kind}/a.png").is_file() for kind in ("recorded", "new"))
    for seconds, sound in ((1, short), (3, item.sounds["new"])):
        axes, _ = plot_spectrogram(sound, make_settings()).axes
        (picture,) = axes.images
        extent = [0, seconds, 0, librosa.hz_to_mel(SAMPLE_RATE / 2)]
        assert picture.get_extent() == pytest.approx(extent)
        assert axes.get_xlim() == pytest.approx((0, seconds))
    image = picture.get_array()
    row = round(librosa.hz_to_mel(3000) / extent[-1] * (len(image) - 1))
    texts = [text.get_text() for text in axes.get_yticklabels()]
    labels = dict(zip(texts, axes.get_yticks(), strict=True))
    assert labels["4000"] == pytest.approx(librosa.hz_to_mel(4000))
    silent, loud = np.split(image[row], [len(image[row]) // 3])
    assert silent[:-4].max() == image.min() < loud[4:].min() - 60
    assert abs(np.argmax(image, axis=0)[-9] - row) <= 1  # of the bin that is nearest


def test_a_picture_is_a_png_whatever_a_users_matplotlibrc_says(tmp_path):
    with matplotlib.rc_context({"savefig.format": "pdf", "text.usetex": True}):
        figure = plot_spectrogram(make_tone(), make_settings())
        files.write_figure(tmp_path / "a.png", figure)

    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_a_long_sound_has_no_more_columns_than_are_seen():
    axes, _ = plot_spectrogram(np.zeros(3_000_000, np.float32), make_settings()).axes

    assert 1900 <= axes.images[0].get_array().shape[1] <= 2100


def test_sounds_may_lie_beside_the_page(tmp_path):
    folder = tmp_path / "samples"
    for name in ("a", "b"):
        page = Page(folder, make_settings())
        page.add(*generate.save_item(*make_items(name), {"new": tmp_path / "new"}, SAMPLE_RATE))

    assert list_titles(folder) == ["Piece b", "Piece a"]
    assert 'src="../new/a.wav"' in (folder / "index.html").read_text()


@pytest.mark.parametrize("items", [b"[]", b"[" * 100_000, [{"name": "a"}]])
def test_damaged_items_are_named(tmp_path, items):
    if isinstance(items, bytes):
        (tmp_path / "items.json").write_bytes(items)
    else:
        files.write_json(tmp_path / "items.json", {"summary": {}, "items": items})

    with pytest.raises(UserError, match=r"items\.json is (damaged|not a JSON).*: delete it"):
        Page(tmp_path, make_settings())


def test_items_of_strangers_put_no_script_into_the_page(tmp_path):
    script = "<script>alert(1)</script>"
    name = 'a" onerror="alert(1)'
    player = {"kind": script, "sound": f"{name}.wav", "picture": f"{name}.png", "seconds": 1.0}
    item = {"name": script, "title": script, "players": [player], "figures": {script: script}}
    (tmp_path / f"{name}.wav").touch()
    files.write_json(tmp_path / "items.json", {"summary": {script: script}, "items": [item]})

    page = run(tmp_path, make_items("b #1"))

    html = (tmp_path / "index.html").read_text()
    assert 'src="new/b%20%231.wav"' in html and (tmp_path / "new" / "b #1.wav").is_file()
    assert len(page.entries) == 2
    assert "<script>alert" not in html and " onerror=" not in html
