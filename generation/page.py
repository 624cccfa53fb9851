"""The page to hear, see and compare what was made.

In:  Items whose sounds are saved.
Out: samples/index.html, its pictures, spectrograms.png and metrics.csv.

    page = Page(Path("samples"), settings)
"""

import os
import warnings
from pathlib import Path
from urllib.parse import quote

import jinja2

from support.files import make_printable, write_atomically, write_csv, write_figure

MAX_COLUMNS = 2000  # of a picture
MAX_PAIRS = 5  # in spectrograms.png
KINDS = {  # of sounds, and what the page calls them
    "recorded": "Recorded",
    "original": "Its spectrogram, inverted",
    "generated": "Generated",
    "new": "New",
}


class Page:
    """Collects what was made, and writes it down.

    Args:
        folder: to write.
        settings: the features' Settings.
    """

    def __init__(self, folder, settings):
        self.folder = Path(folder)
        self.settings = settings
        self.entries = []
        self.pairs = []  # Items that spectrograms.png shows
        self.rows = []  # of metrics.csv

    def add(self, item, paths):
        """Draw an Item's pictures, and remember it.

        Args:
            paths: {kind: path of the saved sound}.
        """
        players = []
        for kind, path in paths.items():
            picture = None
            if kind in item.log_spectrograms:
                picture = f"pictures/{kind}/{item.name}.png"
                draw_picture(self.folder / picture, item.log_spectrograms[kind], self.settings)
            players.append(
                {
                    "kind": KINDS[kind],
                    "sound": quote(Path(os.path.relpath(path, self.folder)).as_posix()),
                    "picture": picture and quote(picture),
                    "seconds": item.sounds[kind].shape[-1] / self.settings.sample_rate,
                }
            )
        figures = format_figures(item.figures)
        self.entries.append({"title": item.title, "players": players, "figures": figures})
        self.rows += [(item.name, name, value) for name, value in item.figures.items()]
        if {"original", "generated"} <= item.log_spectrograms.keys():
            self.pairs = [*self.pairs, item][:MAX_PAIRS]

    def write(self, summary):
        """Write index.html, which needs nothing but the files beside it, and the tables.

        Args:
            summary: {name: value} of all items together.
        """
        if self.pairs:
            plot_pairs(self.folder / "spectrograms.png", self.pairs, self.settings)
        rows = self.rows + [("all new pieces", name, value) for name, value in summary.items()]
        write_csv(self.folder / "metrics.csv", ("item", "figure", "value"), rows)
        template = Path(__file__).with_name("page.html").read_text()
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        page = environment.from_string(template).render(
            entries=self.entries, summary=format_figures(summary)
        )
        write_atomically(self.folder / "index.html", page.encode("utf-8", "replace"))


def draw_picture(path, log_spectrogram, settings):
    """Write a log spectrogram as PNG, with axes in seconds and Hz."""
    from matplotlib.figure import Figure

    n_columns = log_spectrogram.shape[1]
    step = -(-n_columns // MAX_COLUMNS)  # a long piece has more frames than the picture has pixels
    image = log_spectrogram[:, ::step].mean(axis=2)
    duration = n_columns * settings.hop_length / settings.sample_rate
    figure = Figure(figsize=(4.6, 2.6), layout="constrained")
    axes = figure.add_subplot()
    shown = show_spectrogram(axes, image, duration, settings)
    axes.set(xlabel="seconds", ylabel="Hz")
    figure.colorbar(shown, label="dB")
    write_figure(path, figure, dpi=100)


def show_spectrogram(axes, image, duration, settings):
    """Show a log spectrogram, (n_bins, n_frames), down to top_db under its peak."""
    return axes.imshow(
        image,
        origin="lower",
        aspect="auto",
        extent=(0, duration, 0, settings.sample_rate / 2),
        vmin=image.max() - settings.top_db,
        vmax=image.max(),
        cmap="magma",
        interpolation="nearest",
    )


def plot_pairs(path, items, settings):
    """Write a picture: each original log spectrogram above its reconstruction, in Hz and s."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(items), 5), layout="constrained")
    grid = figure.subplots(2, len(items), squeeze=False, sharex=True, sharey=True)
    for column, item in enumerate(items):
        for axes, kind in zip(grid[:, column], ("original", "generated"), strict=True):
            image = item.log_spectrograms[kind][..., 0]
            show_spectrogram(axes, image, settings.duration, settings)
        title = make_printable(item.title.removesuffix(".npy"))[-32:]
        grid[0, column].set_title(title, fontsize=8, parse_math=False)
        grid[1, column].set_xlabel("seconds")
    for axes, name in zip(grid[:, 0], ("original", "generated"), strict=True):
        axes.set_ylabel(f"{name}, Hz")
    with warnings.catch_warnings():  # a name may have characters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_figure(path, figure, dpi=100)


def format_figures(figures):
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in figures.items()
    }
