"""A page in the browser to train a model and to play with it, as command lines would.

In:  functions that open a model, make Items of flags, and keep them.
Out: sounds and their spectrograms, to hear at once; those that are kept go to the samples folder.

    launch(build_app(open_model, make, keep, ("model", None), ("saved_data", "model")))
"""

import base64
import contextlib
import functools
import os
import shlex
import signal as signals
import time
from pathlib import Path

import numpy as np
import soundfile

from generation.modes import Composer, compose_endlessly
from generation.page import plot_spectrogram
from generation.scripts import Script, describe_prospects, find_music, plot_losses
from support.errors import UserError
from support.prior import TEMPERATURE

DIRECTIONS = 8  # sliders, at most
MAX_OFFSET = 3.0  # standard deviations along a direction
MAX_TEMPERATURE = 1.5
MAX_SECONDS = 600  # of new music; compose makes more
MAX_UPLOAD = "200mb"
ANY = "any"  # style
CACHE_S = 3600  # seconds that uploads and sounds stay which are not kept

N_LINES = 16  # of what a script printed, that are shown
FADE_S = 0.05  # in which endless music becomes softer, for it not to clip, or louder again
MOST_RISE = 1.1  # of its factor, from chunk to chunk
START = "(...values) => { window.player?.close?.(); window.player = {}; return values; }"
PLAY = """text => {
  const [number, rate, n_channels, data] = text.split(" ");
  if (!data || !window.player) return;
  if (!window.player.close) window.player = new AudioContext({sampleRate: +rate});
  const player = window.player;
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0));
  const samples = Float32Array.from(new Int16Array(bytes.buffer), value => value / 32768);
  const sound = player.createBuffer(+n_channels, samples.length / n_channels, +rate);
  for (let i = 0; i < n_channels; i++)
    sound.copyToChannel(samples.subarray(i * sound.length, (i + 1) * sound.length), i);
  const soon = Math.round((player.currentTime + 0.05) * rate);
  const start = Math.max(soon, player.stop ?? 0);  // in samples, for no seam to be there
  player.stop = start + sound.length;
  const source = new AudioBufferSourceNode(player, {buffer: sound});
  source.connect(player.destination);
  source.start(start / rate);
}"""
STOP = "() => { window.player?.close?.(); window.player = null; }"


class Model:
    """The model that is played with, until another one takes its place.

    Args:
        open_model: from two folders, of a model and of its features or None, to its Sources and the
            flags of generate.py that name them.
    """

    def __init__(self, open_model):
        self._open_model = open_model
        self.sources, self.flags, self.styles, self.n_directions = None, [], [ANY], DIRECTIONS

    def open(self, *folders):
        """Take the model of these folders; if it is not usable, there is none."""
        try:
            sources, flags = self._open_model(*folders)
            prior = sources.prior
        except (OSError, UserError) as error:
            self.sources, self.title = None, f"There is no model to play with yet: {error}"
            return
        self.sources, self.flags = sources, flags
        self.title = f"The model in `{sources.model}`, on this machine."
        self.styles = [ANY, *sorted({*prior.genres.tolist()} - {""})]
        self.n_directions = min(DIRECTIONS, len(prior.find_directions()))


def build_app(open_model, make, keep, opened, folders, *, seed=0, detail=True):
    """The gradio.Blocks; launch() starts it.

    Args:
        open_model: see Model.
        make: from Sources and flags of generate.py to the Items that these make.
        keep: from Sources, an Item, its flags and uploads to the line that says where it went.
        opened: the folders of the model that it begins with, and of its features or None.
        folders: for features and for the model of what is trained.
        seed, detail: what it begins with.
    Raises:
        UserError: gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise UserError("the app needs gradio: pip install -r requirements-extra.txt") from error

    model = Model(open_model)
    model.open(*opened)
    with gr.Blocks(title="Generative Music", delete_cache=(CACHE_S, CACHE_S)) as app:
        title = gr.Markdown()
        detail = gr.Checkbox(detail, label="Detail: draw what the network loses")
        tabs, styles, directions = [], [], []  # which a model changes
        for name, button, inputs, to_flags in list_tabs(gr, model, seed):
            with gr.Tab(name, visible=model.sources is not None) as tab:
                with gr.Row():
                    for component in inputs:
                        component.render()
                if name == "Endless":
                    add_endless(gr, model, detail, inputs)
                else:
                    show = functools.partial(show_sound, gr, model, make, to_flags)
                    add_outputs(gr, show, keep, detail, inputs, button)
            tabs.append(tab)
            styles += [each for each in inputs if isinstance(each, gr.Dropdown)]
            directions = inputs if name == "Explore" else directions

        def show_model():
            is_there = model.sources is not None
            return [
                f"# Generative Music\n{model.title}",
                *[gr.Tab(visible=is_there)] * len(tabs),
                *[gr.Dropdown(model.styles, value=ANY)] * len(styles),
                *[gr.Slider(visible=i < model.n_directions) for i in range(len(directions))],
            ]

        shown = title, *tabs, *styles, *directions
        loaded = app.load(show_model, None, shown)
        with gr.Tab("Train"):
            endings = add_training(gr, model, folders, loaded)
        for ending in endings:
            ending.then(show_model, None, shown)
        # Import and compile while the user looks around.
        app.load(lambda: model.sources and [*make(model.sources, ["sample", "1"])] and None)
    return app


def launch(app):
    """Serve an app to this machine alone, and to no page of another site."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # A shell's & ignores Ctrl-C; scripts that the app starts would, too, and could not be stopped.
    signals.signal(signals.SIGINT, signals.default_int_handler)
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    options = {"max_file_size": MAX_UPLOAD, "app_kwargs": {"middleware": [trusted]}}
    app.launch(server_name="127.0.0.1", share=False, **options)


def list_tabs(gr, model, seed):
    """(name, button or None, inputs, what makes flags of their values) of each tab."""
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
            gr.Dropdown([ANY], value=ANY, label="Style", **hidden),
            upload("Or the style of a recording"),
            gr.Slider(0, MAX_TEMPERATURE, TEMPERATURE, label="Temperature", **hidden),
            gr.Number(seed, precision=0, minimum=0, maximum=2**32 - 1, label="Seed", **hidden),
        ]

    directions = [
        gr.Slider(-MAX_OFFSET, MAX_OFFSET, 0, step=0.1, label=f"Direction {i + 1}", **hidden)
        for i in range(DIRECTIONS)
    ]
    gap = [upload(), number("From", 1), number("To", 3)]
    morph = [upload("From"), upload("To"), seconds(4)]
    return [
        ("New piece", "Make", manner(), functools.partial(tell_new, "sample", 1)),
        ("Compose", "Compose", [seconds(30), *manner()], functools.partial(tell_new, "compose")),
        ("Endless", None, manner(), None),
        ("Loop", "Make a loop", [seconds(6), number("Beats per minute"), *manner()], tell_loop),
        (
            "Continue",
            "Continue",
            [upload(), seconds(10), *manner()],
            functools.partial(tell_new, "continue"),
        ),
        ("Fill", "Fill", [*gap, *manner()], functools.partial(tell_new, "fill")),
        (
            *("Explore", None, directions),
            lambda *offsets: tell("explore", *offsets[: model.n_directions]),
        ),
        ("Morph", "Morph", morph, functools.partial(tell, "interpolate")),
        ("Through the model", "Send it through", [upload()], functools.partial(tell, "songs")),
    ]


def tell_new(command, *values):
    """A command and its flags: values of its own, then what new music is to be like."""
    *own, style, recording, temperature, seed = values
    like = choose_like(style, recording)
    flags = ["--like", *like] if like else []
    if like and like[0].startswith("-"):  # a folder's name that looks like a flag
        flags = [f"--like={style}"]
    flags += ["--temperature", *tell(temperature), "--seed", str(int(seed or 0))]
    return [*tell(command, *own), *flags]


def choose_like(style, recording):
    """What new music is to be like: a recording or, without one, a style that is not ANY."""
    like = recording or (style if style != ANY else None)
    return (like,) if like else ()


def tell_loop(length, bpm, *how):
    return [*tell_new("loop", length, *how), *(["--bpm", *tell(max(1, bpm))] if bpm else [])]


def tell(*values):
    """Texts and numbers as a command line has them; a UserError if a field is empty."""
    if None in values:
        raise UserError(
            "fill in each number, and upload a recording, or make one with the microphone"
        )
    return [each if isinstance(each, str) else f"{each:g}" for each in values]


def add_outputs(gr, show, keep, detail, inputs, button):
    """The lower half of a tab; without a button, its sliders make the sound."""
    if button:
        trigger = gr.Button(button, variant="primary").click
    else:
        trigger = functools.partial(gr.on, [slider.release for slider in inputs])
    with gr.Row():
        sound = gr.Audio(label="Sound", interactive=False, format="wav", autoplay=True)
        figure = gr.Plot(show_label=False)  # it would cover the picture
    command = gr.Textbox(label="The command that makes it again", interactive=False)
    result, kept = gr.State(), gr.Textbox(label="Kept", interactive=False)
    trigger(show, [detail, *inputs], [sound, figure, command, result])
    gr.Button("Keep it").click(functools.partial(keep_result, gr, keep), result, kept)


def show_sound(gr, model, make, to_flags, with_detail, *values):
    """The outputs of a tab: player, picture, command, and what build_app's keep() takes."""
    sources, base_flags = model.sources, model.flags
    with show_errors(gr):
        flags = [*to_flags(*values), *([] if with_detail else ["--no-detail"])]
        item = next(iter(make(sources, flags)))
        if isinstance(item, UserError):
            raise item
    uploads = [each for each in values if isinstance(each, str) and each in flags[1:]]
    uploads = [path for path in uploads if os.path.isfile(path)]
    signal, flags = item.sounds["new"], [*base_flags, *flags]
    sound = to_player(signal.T, sources.settings.sample_rate)
    picture = plot_spectrogram(signal, sources.settings)
    return sound, picture, format_command(flags), (sources, item, flags, uploads)


def to_player(samples, sample_rate):
    """Samples, (n,) or (n, 2), as a player takes them."""
    return sample_rate, np.rint(32767 * samples / max(1, np.abs(samples).max())).astype(np.int16)


def keep_result(gr, keep, result):
    with show_errors(gr):
        if result is None:
            raise UserError("make a sound first")
        return keep(*result)


def add_endless(gr, model, detail, inputs):
    """The lower half of the tab that plays on and on."""
    live, sent = gr.State({}), gr.Textbox(visible="hidden")
    with gr.Row():
        play, stop = gr.Button("Play", variant="primary"), gr.Button("Stop")
    stream = functools.partial(stream_music, gr, model)
    values = [live, detail, *inputs]
    playing = play.click(stream, values, sent, js=START, concurrency_limit=None)
    for each in inputs:
        each.change(lambda live, *how: live.update(how=how), [live, *inputs])
    sent.change(None, sent, js=PLAY)
    stop.click(None, js=STOP, cancels=playing)


def stream_music(gr, model, live, with_detail, *how):
    """Yield chunks of endless music as PLAY takes them, one ahead of what is heard.

    Args:
        live: a dict; its "how", the values of the inputs, may change while the music plays.
    """
    live["how"] = how
    sources, end = model.sources, 0.0
    rate = sources.settings.sample_rate

    def get_composer(number):
        """The Composer of a chunk; each has scatter of its own."""
        style, recording, temperature, seed = live["how"]
        generator = sources.make_generator(int(seed or 0) + number, with_detail)
        like = choose_like(style, recording)
        return Composer(generator, sources.prior, like, "", temperature, int(seed or 0))

    with show_errors(gr):
        for number, chunk in enumerate(limit_level(compose_endlessly(get_composer), rate)):
            data = base64.b64encode(np.rint(32767 * chunk).clip(-32767, 32767).astype("<i2"))
            yield f"{number} {rate} {len(chunk)} {data.decode()}"
            begin = max(end, time.monotonic())  # of its being heard, which is when the next is made
            end = begin + chunk.shape[-1] / rate
            time.sleep(max(0, begin - time.monotonic()))


def limit_level(chunks, rate):
    """Yield chunks, float32 (n_channels, n_samples), by a factor at which they do not clip."""
    factor = 1.0
    for chunk in map(np.atleast_2d, chunks):
        before = factor
        factor = min(1.0, MOST_RISE * before, 1 / max(1e-9, np.abs(chunk).max()))
        samples = np.arange(chunk.shape[-1])
        yield chunk * np.interp(samples, (0, FADE_S * rate), (before, factor))


def add_training(gr, model, folders, loaded):
    """What the tab *Train* holds.

    Args:
        folders: see build_app().
        loaded: the event of a page that opens, which may find a script running.
    Returns:
        the events of scripts that have ended.
    """
    script = Script()
    gr.Markdown(
        "Name a folder of your music, or upload some; count what is there; start. What is stopped, "
        "here or in a terminal, goes on from there when it is started again."
    )
    with gr.Row():
        folder = gr.Textbox(label="Folder of music on this machine")
        uploads = gr.File(label="Or upload audio files", file_count="multiple")
    with gr.Row():
        saved_data, target = (
            gr.Textbox(str(path), label=label)
            for path, label in zip(folders, ("--saved_data", "--model"), strict=True)
        )
        more = gr.Textbox(label="More flags of train.py", placeholder="--epochs 20")
    with gr.Row():
        count, start, stop = gr.Button("Count"), gr.Button("Start"), gr.Button("Stop")
    printed = gr.Textbox(label="Printed", lines=N_LINES, max_lines=N_LINES)
    prospects, losses = gr.Markdown(), gr.Plot(show_label=False)
    sound = gr.Audio(label="A piece as the model makes it now", interactive=False)

    def count_music(folder, uploads, saved_data):
        with show_errors(gr):
            flags = ["--audio_files_dir", find_music(folder, uploads, saved_data)]
            script.start("preprocess.py", [*flags, "--saved_data", saved_data])

    def train(saved_data, target, more):
        with show_errors(gr):
            try:
                flags = ["--saved_data", saved_data, "--model", target, *shlex.split(more)]
            except ValueError as error:  # a quotation that does not end
                raise UserError(f"More flags: {error}") from error
            flags += [] if "--force" in flags else ["--resume"]
            paths = [Path(name).expanduser() for name in (target, saved_data)]
            script.start("train.py", flags, lambda: model.open(*paths))

    def show_script(target):
        path, heard = Path(target).expanduser() / "logs" / "reconstructed.wav", 0
        for text in script.follow():
            last = text.splitlines(keepends=True)[-N_LINES:]
            is_new = path.exists() and path.stat().st_mtime_ns > heard
            heard = path.stat().st_mtime_ns if is_new else heard
            new = to_player(*soundfile.read(path, dtype="float32")) if is_new else gr.skip()
            yield "".join(last), describe_prospects(text), plot_losses(text), new

    counting = count.click(count_music, [folder, uploads, saved_data])
    training = start.click(train, [saved_data, target, more])
    stop.click(script.stop)
    return [
        event.then(show_script, target, [printed, prospects, losses, sound], concurrency_limit=None)
        for event in (loaded, counting, training)
    ]


@contextlib.contextmanager
def show_errors(gr):
    """What the user can mend becomes a message on the page."""
    try:
        yield
    except (UserError, OSError) as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def format_command(flags):
    return shlex.join(["python", "generate.py", *flags])
