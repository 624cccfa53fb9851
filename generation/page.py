"""The page to hear, see and compare what was made.

In:  sounds and their log spectrograms.
Out: samples/index.html, its pictures, and spectrograms.png.

    write_page(Path("samples"), entries, summary={})
"""

import warnings
from pathlib import Path

from support.files import make_printable, write_atomically, write_figure

MAX_COLUMNS = 2000  # of a picture


def draw_picture(path, log_spectrogram, settings):
    """Write a log spectrogram as PNG, with axes in seconds and Hz."""
    from matplotlib.figure import Figure

    n_columns = log_spectrogram.shape[1]
    step = -(-n_columns // MAX_COLUMNS)  # a long piece has more frames than the picture has pixels
    image = log_spectrogram[:, ::step].mean(axis=2)
    duration = n_columns * settings.hop_length / settings.sample_rate
    figure = Figure(figsize=(4.6, 2.6), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(
        image, origin="lower", aspect="auto", extent=(0, duration, 0, settings.sample_rate / 2),
        vmin=image.max() - settings.top_db, vmax=image.max(), cmap="magma", interpolation="nearest",
    )  # fmt: skip
    axes.set(xlabel="seconds", ylabel="Hz")
    figure.colorbar(shown, label="dB")
    write_figure(path, figure, dpi=100)


def plot_pairs(path, pairs, settings):
    """Write a picture: each original log spectrogram above its reconstruction, in Hz and s.

    Args:
        pairs: [(key, original, reconstructed)], normalised (n_bins, n_frames, n_channels).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(pairs), 5), layout="constrained")
    grid = figure.subplots(2, len(pairs), squeeze=False, sharex=True, sharey=True)
    extent = (0, settings.duration, 0, settings.sample_rate / 2)
    for column, (key, *images) in enumerate(pairs):
        for axes, image in zip(grid[:, column], images, strict=True):
            axes.imshow(
                image[..., 0], origin="lower", aspect="auto", extent=extent, vmin=0, vmax=1,
                cmap="magma", interpolation="nearest",
            )  # fmt: skip
        title = make_printable(key.removesuffix(".npy"))[-32:]
        grid[0, column].set_title(title, fontsize=8, parse_math=False)
        grid[1, column].set_xlabel("seconds")
    for axes, name in zip(grid[:, 0], ("original", "generated"), strict=True):
        axes.set_ylabel(f"{name}, Hz")
    with warnings.catch_warnings():  # a name may have characters that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_figure(path, figure, dpi=100)


def write_page(samples, entries, summary):
    """Write index.html, which needs nothing but the files beside it."""
    import jinja2

    template = Path(__file__).with_name("page.html").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(entries=entries, summary=summary)
    write_atomically(samples / "index.html", page.encode("utf-8", "replace"))


def format_figures(figures):
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in figures.items()
    }
