"""The page to hear, see and compare what was made.

In:  Items whose sounds are saved; what earlier runs made in the same folder.
Out: samples/index.html, its pictures, spectrograms.png, metrics.csv, and items.json for later runs.

    page = Page(Path("samples"), settings)
"""

import os
import warnings
from pathlib import Path
from urllib.parse import quote

import jinja2
import librosa
import numpy as np

from soundgenerator import cut_samples
from support.bands import find_mel_rows
from support.files import (
    make_figure,
    make_printable,
    read_json,
    reading,
    write_atomically,
    write_csv,
    write_figure,
    write_json,
)

MAX_COLUMNS = 2000  # of a picture
TICKS = 0, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000  # Hz
MAX_PAIRS = 5  # in spectrograms.png
KINDS = {  # of sounds, and what the page calls them
    "recorded": "Recorded",
    "original": "Its spectrogram, inverted",
    "generated": "Generated",
    "new": "New",
}


class Page:
    """All that was made in a folder, by this run and by earlier ones.

    Args:
        folder: to write; its items.json, if there is one, is read.
    Raises:
        UserError: items.json is damaged.
    """

    def __init__(self, folder, settings):
        self.folder = Path(folder)
        self.settings = settings
        self.earlier, self.summary = load_items(self.folder)
        self.made = {}  # entries of this run, by name
        self.pairs = []  # Items that spectrograms.png shows
        template = Path(__file__).with_name("page.html").read_text()
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        self._template = environment.from_string(template)

    @property
    def entries(self):
        """What items.json holds of each item: those of this run, then the earlier ones."""
        return [*self.made.values(), *self.earlier.values()]

    def add(self, item, paths):
        """Draw an Item's pictures and put it on the page, in place of an older one of its name.

        Args:
            paths: {kind: path of the saved sound}.
        """
        players = []
        for kind, path in paths.items():
            picture = f"pictures/{kind}/{item.name}.png"
            figure = plot_spectrogram(item.sounds[kind], self.settings)
            write_figure(self.folder / picture, figure, dpi=100)
            players.append(
                {
                    "kind": KINDS[kind],
                    "sound": Path(os.path.relpath(path, self.folder)).as_posix(),
                    "picture": picture,
                    "seconds": item.sounds[kind].shape[-1] / self.settings.sample_rate,
                }
            )
        self.earlier.pop(item.name, None)
        self.made[item.name] = {
            "name": item.name,
            "title": item.title,
            "players": players,
            "figures": item.figures,
            "origins": item.origins,
        }
        if {"original", "generated"} <= item.sounds.keys():
            self.pairs = [*self.pairs, item][:MAX_PAIRS]
        self._write()

    def finish(self, summary):
        """Write what needs all items of a run.

        Args:
            summary: {name: value} of all new pieces together; if empty, that of an earlier run
                stays.
        """
        self.summary = summary or self.summary
        if self.pairs:
            plot_pairs(self.folder / "spectrograms.png", self.pairs, self.settings)
        self._write()

    def _write(self):
        """Write items.json, metrics.csv, and index.html, which opens without a server."""
        write_json(self.folder / "items.json", {"summary": self.summary, "items": self.entries})
        rows = [
            (entry["name"], name, value)
            for entry in self.entries
            for name, value in entry["figures"].items()
        ]
        rows += [("all new pieces", name, value) for name, value in self.summary.items()]
        write_csv(self.folder / "metrics.csv", ("item", "figure", "value"), rows)
        page = self._template.render(
            entries=map(format_entry, self.entries), summary=format_figures(self.summary)
        )
        write_atomically(self.folder / "index.html", page.encode("utf-8", "replace"))


def load_items(folder):
    """What earlier runs made in a folder, as far as its sounds still exist.

    Returns:
        ({name: entry}, summary), as items.json holds them.
    Raises:
        UserError: items.json is damaged.
    """
    path = folder / "items.json"
    if not path.exists():
        return {}, {}
    remedy = "delete it, which empties the page but keeps the sounds, or name another --samples"
    with reading(path, remedy):
        content = read_json(path)
        entries, summary = content["items"], content["summary"]
        for entry in entries:
            players = entry["players"]
            entry["players"] = [each for each in players if os.path.isfile(folder / each["sound"])]
        return {entry["name"]: entry for entry in entries if entry["players"]}, summary


def plot_spectrogram(signal, settings):
    """The Figure of a sound's log spectrogram, in seconds and Hz."""
    figure = make_figure(4.6, 2.6)
    axes = figure.add_subplot()
    shown = show_spectrogram(axes, signal, settings)
    axes.set(xlabel="seconds", ylabel="Hz, on the mel scale")
    figure.colorbar(shown, label="dB")
    return figure


def show_spectrogram(axes, signal, settings):
    """Show a sound's log spectrogram over the mel scale, down to top_db under its peak.

    Of a long one, some frames are shown.

    Args:
        signal: float32 (n_samples,) or (2, n_samples).
    """
    frame_size, n_samples = settings.frame_size, signal.shape[-1]
    hop_length = max(settings.hop_length, n_samples // MAX_COLUMNS)
    starts = np.arange(0, n_samples, hop_length) - frame_size // 2
    frames = [cut_samples(signal, start, start + frame_size) for start in starts]
    spectra = np.abs(np.fft.rfft(frames * np.hanning(frame_size)))  # (n, ..., bins)
    amplitude = spectra.reshape(len(frames), -1, spectra.shape[-1]).mean(axis=1).T
    image = librosa.amplitude_to_db(amplitude, top_db=settings.top_db)
    most = librosa.hz_to_mel(settings.sample_rate / 2)
    ticks = [hertz for hertz in TICKS if hertz <= settings.sample_rate / 2]
    axes.set_yticks(librosa.hz_to_mel(ticks), ticks)
    return axes.imshow(
        image[find_mel_rows(len(image), settings.sample_rate)],
        origin="lower",
        aspect="auto",
        extent=(0, n_samples / settings.sample_rate, 0, most),
        cmap="magma",
        interpolation="nearest",
    )


def plot_pairs(path, items, settings):
    """Write a picture: each original log spectrogram above its reconstruction."""
    figure = make_figure(3.2 * len(items), 5)
    grid = figure.subplots(2, len(items), squeeze=False, sharex=True, sharey=True)
    for column, item in enumerate(items):
        for axes, kind in zip(grid[:, column], ("original", "generated"), strict=True):
            show_spectrogram(axes, item.sounds[kind], settings)
        title = make_printable(item.title.removesuffix(".npy"))[-32:]
        grid[0, column].set_title(title, fontsize=8, parse_math=False)
        grid[1, column].set_xlabel("seconds")
    for axes, name in zip(grid[:, 0], ("original", "generated"), strict=True):
        axes.set_ylabel(f"{name}, Hz")
    with warnings.catch_warnings():  # a name may have characters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_figure(path, figure, dpi=100)


def format_entry(entry):
    """An entry of items.json as page.html shows it: its paths as URLs, its figures as texts."""
    players = [
        {**player, **{kind: quote(player[kind], errors="replace") for kind in ("sound", "picture")}}
        for player in entry["players"]
    ]
    return {**entry, "players": players, "figures": format_figures(entry["figures"])}


def format_figures(figures):
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in figures.items()
    }
