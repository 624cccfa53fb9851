"""A page in the browser to play with one model: each tab makes what a command line would.

In:  what makes Items of flags, and what keeps them.
Out: sounds and their spectrograms, to hear at once; those that are kept go to the samples folder.

    launch(build_app(make, keep, sources, ["--model", "model"]))
"""

import contextlib
import functools
import os
import shlex
from typing import NamedTuple

import numpy as np

from generation.modes import Item
from generation.page import plot_spectrogram
from support.errors import UserError
from support.prior import TEMPERATURE

DIRECTIONS = 8  # sliders, at most
MAX_OFFSET = 3.0  # standard deviations along a direction
MAX_TEMPERATURE = 1.5
MAX_SECONDS = 600  # of new music; --compose makes more
MAX_UPLOAD = "200mb"
ANY = "any"  # style
CACHE_S = 3600  # seconds that uploads and sounds stay which are not kept


class Result(NamedTuple):
    """What was made last in a tab, until it is kept."""

    item: Item
    flags: list  # of generate.py, that make it again
    uploads: list  # paths among the flags, which the browser sent


def build_app(make, keep, sources, base_flags, *, seed=0, detail=True):
    """The gradio.Blocks of one model; launch() starts it.

    Args:
        make: from flags of generate.py to the Items that it makes.
        keep: (Item, flags, uploads) to the line that says where it went.
        sources: the Sources.
        base_flags: of generate.py, that name the model.
        seed, detail: what it begins with.
    Raises:
        UserError: gradio is not installed.
        FileNotFoundError: the model has no prior.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("--app needs gradio: pip install -r requirements-extra.txt") from error

    with gr.Blocks(title="Generative Music", delete_cache=(CACHE_S, CACHE_S)) as app:
        gr.Markdown(f"# Generative Music\nThe model in `{sources.model}`, on this machine.")
        detail = gr.Checkbox(detail, label="Detail: draw what the network loses")
        for name, button, inputs, to_flags in list_tabs(gr, sources.prior, seed):
            show = functools.partial(show_sound, gr, make, sources.settings, base_flags, to_flags)
            with gr.Tab(name):
                with gr.Row():
                    for component in inputs:
                        component.render()
                if button:
                    trigger = gr.Button(button, variant="primary").click
                else:
                    trigger = functools.partial(gr.on, [slider.release for slider in inputs])
                add_outputs(gr, keep, show, detail, inputs, trigger)
        app.load(lambda: [*make(["--sample", "1"])] and None)  # imports and compiles
    return app


def launch(app):
    """Serve an app to this machine alone, and to no page of another site."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    options = {"max_file_size": MAX_UPLOAD, "app_kwargs": {"middleware": [trusted]}}
    app.launch(server_name="127.0.0.1", share=False, **options)


def list_tabs(gr, prior, seed):
    """(name, button or None, inputs, what makes flags of their values) of each tab."""
    styles = [ANY, *sorted({*prior.genres.tolist()} - {""})]
    n_directions = min(DIRECTIONS, len(prior.find_directions()))
    hidden = {"render": False}

    def seconds(value, label="Seconds"):
        return gr.Slider(0.1, MAX_SECONDS, value, step=0.1, label=label, **hidden)

    def number(label, value=None):
        return gr.Number(value, label=label, **hidden)

    def upload(label="Recording"):
        sources = ["upload", "microphone"]
        return gr.Audio(type="filepath", label=label, sources=sources, **hidden)

    def manner():
        return [
            gr.Dropdown(styles, value=ANY, label="Style", **hidden),
            upload("Or the style of a recording"),
            gr.Slider(0, MAX_TEMPERATURE, TEMPERATURE, label="Temperature", **hidden),
            gr.Number(seed, precision=0, minimum=0, maximum=2**32 - 1, label="Seed", **hidden),
        ]

    return [
        ("New piece", "Make", manner(), lambda *how: ["--sample", "1", *tell_manner(*how)]),
        (
            *("Compose", "Compose", [seconds(30), *manner()]),
            lambda length, *how: ["--compose", tell(length), *tell_manner(*how)],
        ),
        ("Loop", "Make a loop", [seconds(6), number("Beats per minute"), *manner()], tell_loop),
        (
            *("Continue", "Continue", [upload(), seconds(10), *manner()]),
            lambda path, more, *how: [
                "--continue",
                check_upload(path),
                tell(more),
                *tell_manner(*how),
            ],
        ),
        ("Fill", "Fill", [upload(), number("From", 1), number("To", 3), *manner()], tell_gap),
        (
            *("Explore", None),
            [
                gr.Slider(
                    -MAX_OFFSET, MAX_OFFSET, 0, step=0.1, label=f"Direction {i + 1}", **hidden
                )
                for i in range(n_directions)
            ],
            lambda *offsets: ["--explore", *map(tell, offsets)],
        ),
        (
            *("Morph", "Morph", [upload("From"), upload("To"), seconds(4)]),
            lambda a, b, time: ["--interpolate", check_upload(a), check_upload(b), tell(time)],
        ),
        (
            *("Through the model", "Send it through", [upload()]),
            lambda path: ["--audio_files", check_upload(path)],
        ),
    ]


def tell_manner(style, recording, temperature, seed):
    """The flags of what new music is to be like."""
    like = recording or (style if style != ANY else None)
    flags = ["--like", like] if like else []
    return [*flags, "--temperature", tell(temperature), "--seed", str(int(seed or 0))]


def tell_loop(length, bpm, *how):
    tempo = ["--bpm", tell(bpm)] if bpm else []
    return ["--loop", tell(length), *tempo, *tell_manner(*how)]


def tell_gap(path, begin, end, *how):
    return ["--fill", check_upload(path), tell(begin), tell(end), *tell_manner(*how)]


def tell(number):
    """A number as a flag's text; a UserError if its field is empty."""
    if number is None:
        raise UserError("fill in each number")
    return f"{number:g}"


def add_outputs(gr, keep, show, detail, inputs, trigger):
    """The lower half of a tab."""
    with gr.Row():
        sound = gr.Audio(label="Sound", interactive=False, format="wav", autoplay=True)
        figure = gr.Plot(show_label=False)  # it would cover the picture
    command = gr.Textbox(label="The command that makes it again", interactive=False)
    result, kept = gr.State(), gr.Textbox(label="Kept", interactive=False)
    trigger(show, [detail, *inputs], [sound, figure, command, result])
    gr.Button("Keep it").click(functools.partial(keep_result, gr, keep), result, kept)


def show_sound(gr, make, settings, base_flags, to_flags, with_detail, *values):
    """The outputs of a tab: player, picture, command, result."""
    with show_errors(gr):
        flags = [*to_flags(*values), *([] if with_detail else ["--no-detail"])]
        item = next(iter(make(flags)))
        if isinstance(item, UserError):
            raise item
    uploads = [each for each in values if isinstance(each, str) and each in flags[1:]]
    uploads = [path for path in uploads if os.path.isfile(path)]
    signal, flags = item.sounds["new"], [*base_flags, *flags]
    samples = signal.T / max(1, np.abs(signal).max())
    sound = settings.sample_rate, np.rint(32767 * samples).astype(np.int16)
    picture = plot_spectrogram(signal, settings)
    return sound, picture, format_command(flags), Result(item, flags, uploads)


def keep_result(gr, keep, result):
    with show_errors(gr):
        if result is None:
            raise UserError("make a sound first")
        return keep(*result)


@contextlib.contextmanager
def show_errors(gr):
    """What the user can mend becomes a message on the page."""
    try:
        yield
    except (UserError, OSError) as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def check_upload(path):
    """The path of an upload; a UserError if there is none."""
    if not path:
        raise UserError("upload a recording, or make one with the microphone")
    return path


def format_command(flags):
    return shlex.join(["python", "generate.py", *flags])
