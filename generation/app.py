"""A page in the browser to play with one model: each tab makes what a command line would.

In:  what makes Items of flags, and what keeps them.
Out: sounds and their spectrograms, to hear at once; those that are kept go to the samples folder.

    launch(build_app(make, keep, sources, ["--model", "model"]))
"""

import contextlib
import functools
import os
import shlex

import numpy as np

from generation.page import plot_spectrogram
from support.errors import UserError
from support.prior import TEMPERATURE

DIRECTIONS = 8  # sliders, at most
MAX_OFFSET = 3.0  # standard deviations along a direction
MAX_TEMPERATURE = 1.5
MAX_SECONDS = 600  # of new music; compose makes more
MAX_UPLOAD = "200mb"
ANY = "any"  # style
CACHE_S = 3600  # seconds that uploads and sounds stay which are not kept


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
        raise UserError("the app needs gradio: pip install -r requirements-extra.txt") from error

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
        app.load(lambda: [*make(["sample", "1"])] and None)  # imports and compiles
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
        return gr.Number(value, label=label, minimum=0, **hidden)

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

    directions = [
        gr.Slider(-MAX_OFFSET, MAX_OFFSET, 0, step=0.1, label=f"Direction {i + 1}", **hidden)
        for i in range(n_directions)
    ]
    gap = [upload(), number("From", 1), number("To", 3)]
    morph = [upload("From"), upload("To"), seconds(4)]
    return [
        ("New piece", "Make", manner(), functools.partial(tell_new, "sample", 1)),
        ("Compose", "Compose", [seconds(30), *manner()], functools.partial(tell_new, "compose")),
        ("Loop", "Make a loop", [seconds(6), number("Beats per minute"), *manner()], tell_loop),
        (
            "Continue",
            "Continue",
            [upload(), seconds(10), *manner()],
            functools.partial(tell_new, "continue"),
        ),
        ("Fill", "Fill", [*gap, *manner()], functools.partial(tell_new, "fill")),
        ("Explore", None, directions, functools.partial(tell, "explore")),
        ("Morph", "Morph", morph, functools.partial(tell, "interpolate")),
        ("Through the model", "Send it through", [upload()], functools.partial(tell, "songs")),
    ]


def tell_new(command, *values):
    """A command and its flags: values of its own, then what new music is to be like."""
    *own, style, recording, temperature, seed = values
    like = recording or (style if style != ANY else None)
    flags = ["--like", like] if like else []
    flags += ["--temperature", *tell(temperature), "--seed", str(int(seed or 0))]
    return [*tell(command, *own), *flags]


def tell_loop(length, bpm, *how):
    return [*tell_new("loop", length, *how), *(["--bpm", *tell(max(1, bpm))] if bpm else [])]


def tell(*values):
    """Texts and numbers as a command line has them; a UserError if a field is empty."""
    if None in values:
        raise UserError(
            "fill in each number, and upload a recording, or make one with the microphone"
        )
    return [each if isinstance(each, str) else f"{each:g}" for each in values]


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
    """The outputs of a tab: player, picture, command, and what build_app's keep() takes."""
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
    return sound, picture, format_command(flags), (item, flags, uploads)


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


def format_command(flags):
    return shlex.join(["python", "generate.py", *flags])
