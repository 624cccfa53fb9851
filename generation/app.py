"""A page in the browser to play with one model.

In:  what makes a SoundGenerator, and the Sources that it may read.
Out: sounds and their spectrograms, to hear at once; those that are kept go to the samples folder.

    build_app(make_generator, sources, keep, ["--model", "model"]).launch(server_name="127.0.0.1")
"""

import contextlib
import functools
import os
import shlex
from typing import NamedTuple

import numpy as np

from generation.modes import (
    STEPS,
    Item,
    compose,
    continue_recording,
    explore,
    load_piece,
    make_samples,
    morph,
    read_prior,
    reconstruct_files,
)
from generation.page import plot_spectrogram
from support.errors import UserError
from support.settings import Settings

DIRECTIONS = 8  # sliders, at most
MAX_OFFSET = 3.0  # standard deviations along a direction
MAX_TEMPERATURE = 2.0
MAX_SECONDS = 600  # of new music; --compose makes more
MAX_UPLOAD = "200mb"
ANY = "any"  # genre


class Result(NamedTuple):
    """What was made last in a tab, until it is kept."""

    item: Item
    flags: list  # of generate.py, that make it again
    uploads: list  # paths among the flags, which the browser sent


def build_app(make_generator, sources, keep, base_flags):
    """The gradio.Blocks of one model; launch() starts it.

    Args:
        make_generator: (with texture: bool, seed) to a SoundGenerator.
        sources: the Sources.
        keep: (Item, flags, uploads) to the line that says where it went.
        base_flags: of generate.py, that name the model.
    Raises:
        UserError: gradio is not installed.
        FileNotFoundError: the model has no prior.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("--app needs gradio: pip install -r requirements-extra.txt") from error

    prior = read_prior(sources.model)
    settings = Settings.load(sources.model / "settings.json")
    genres = [ANY, *sorted({*prior.genres.tolist()} - {""})]

    def new_piece(with_texture, genre, temperature, seed):
        values, flags = read_values(genre, temperature, seed)
        generator = make_generator(with_texture, values["seed"])
        return make_samples(generator, sources, 1, **values), ["--sample", "1", *flags], []

    def long_piece(with_texture, seconds, genre, temperature, seed):
        values, flags = read_values(genre, temperature, seed)
        generator = make_generator(with_texture, values["seed"])
        flags = ["--compose", f"{seconds:g}", *flags]
        return compose(generator, sources, seconds, **values), flags, []

    def continuation(with_texture, path, seconds, genre, temperature, seed):
        values, flags = read_values(genre, temperature, seed)
        generator = make_generator(with_texture, values["seed"])
        request = check_upload(path), f"{seconds:g}"
        items = continue_recording(generator, sources, request, num_spectrograms=1, **values)
        return items, ["--continue", *request, *flags], [path]

    def place(with_texture, *offsets):
        flags = ["--explore", *(f"{offset:g}" for offset in offsets)]
        return explore(make_generator(with_texture, 0), sources, offsets), flags, []

    def between(with_texture, *paths):
        generator = make_generator(with_texture, 0)
        images, ranges = zip(
            *(load_piece(generator, sources, check_upload(path)) for path in paths), strict=True
        )
        names = [os.path.basename(path) for path in paths]
        *_, whole = morph(generator, sources, images, ranges, names, steps=STEPS)
        return [whole], ["--interpolate", *paths, "--steps", str(STEPS)], [*paths]

    def through(with_texture, path):
        generator = make_generator(with_texture, 0)
        items = reconstruct_files(generator, sources, [check_upload(path)])
        return items, ["--audio_files", path], [path]

    def warm_up():
        """Import and compile, while the page is being read, what the first sound needs."""
        next(place(True, 0)[0])

    @contextlib.contextmanager
    def show_errors():
        """What the user can mend becomes a message on the page."""
        try:
            yield
        except (UserError, OSError) as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error

    def show(action, with_texture, *values):
        """The outputs of a tab: player, picture, command, result."""
        with show_errors():
            items, flags, uploads = action(with_texture, *values)
            item = next(iter(items))
            if isinstance(item, UserError):
                raise item
        flags = [*base_flags, *flags, *([] if with_texture else ["--no-texture"])]
        signal = item.sounds["new"]
        samples = signal.T / max(1, np.abs(signal).max())
        figure = plot_spectrogram(signal, settings)
        sound = settings.sample_rate, np.rint(32767 * samples).astype(np.int16)
        return sound, figure, format_command(flags), Result(item, flags, uploads)

    def keep_result(result):
        with show_errors():
            if result is None:
                raise UserError("make a sound first")
            return keep(*result)

    def add_outputs(action, inputs, trigger):
        """The lower half of a tab."""
        with gr.Row():
            sound = gr.Audio(label="Sound", interactive=False, format="wav", autoplay=True)
            figure = gr.Plot(label="Spectrogram")
        command = gr.Textbox(label="The command that makes it again", interactive=False)
        result, kept = gr.State(), gr.Textbox(label="Kept", interactive=False)
        outputs = [sound, figure, command, result]
        trigger(functools.partial(show, action), [texture, *inputs], outputs)
        gr.Button("Keep it").click(keep_result, result, kept)

    def add_drawing(first=()):
        """Inputs of what is drawn from the prior."""
        with gr.Row():
            return [
                *first,
                gr.Dropdown(genres, value=ANY, label="Genre"),
                gr.Slider(0, MAX_TEMPERATURE, 1.0, label="Temperature: how far it strays"),
                gr.Number(0, precision=0, minimum=0, maximum=2**32 - 1, label="Seed"),
            ]

    def add_seconds(value):
        return gr.Slider(1, MAX_SECONDS, value, step=1, label="Seconds")

    def add_upload(label="Recording"):
        return gr.Audio(type="filepath", label=label, sources=["upload", "microphone"])

    with gr.Blocks(title="Generative Music") as app:
        gr.Markdown(f"# Generative Music\nThe model in `{sources.model}`, on this machine.")
        texture = gr.Checkbox(True, label="Texture: put back the scatter that the network loses")
        with gr.Tab("New piece"):
            inputs = add_drawing()
            add_outputs(new_piece, inputs, gr.Button("Make", variant="primary").click)
        with gr.Tab("Compose"):
            inputs = add_drawing([add_seconds(30)])
            add_outputs(long_piece, inputs, gr.Button("Compose", variant="primary").click)
        with gr.Tab("Continue"):
            inputs = add_drawing([add_upload(), add_seconds(10)])
            add_outputs(continuation, inputs, gr.Button("Continue", variant="primary").click)
        with gr.Tab("Explore"):
            gr.Markdown("Each slider is a main direction of what the model has learned.")
            with gr.Row():
                sliders = [
                    gr.Slider(-MAX_OFFSET, MAX_OFFSET, 0, step=0.1, label=f"Direction {index + 1}")
                    for index in range(min(DIRECTIONS, len(prior.find_directions())))
                ]
            add_outputs(
                place, sliders, functools.partial(gr.on, [slider.release for slider in sliders])
            )
        with gr.Tab("Morph"):
            with gr.Row():
                inputs = [add_upload("From"), add_upload("To")]
            add_outputs(between, inputs, gr.Button("Morph", variant="primary").click)
        with gr.Tab("Through the model"):
            inputs = [add_upload()]
            add_outputs(through, inputs, gr.Button("Send it through", variant="primary").click)
        app.load(warm_up)
    return app


def read_values(genre, temperature, seed):
    """(values for the prior's modes, the flags that say the same)."""
    seed = int(seed or 0)
    flags = [] if genre == ANY else ["--genre", genre]
    flags += ["--temperature", f"{temperature:g}", "--seed", str(seed)]
    genre = None if genre == ANY else genre
    return {"genre": genre, "temperature": temperature, "seed": seed}, flags


def check_upload(path):
    """The path of an upload; a UserError if there is none."""
    if not path:
        raise UserError("upload a recording, or make one with the microphone")
    return path


def format_command(flags):
    return shlex.join(["python", "generate.py", *flags])
