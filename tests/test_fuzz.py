"""Whatever bytes a file holds, its reader gives what it should, or an error for the user.

`make fuzz` runs these tests with many more inputs.
"""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import preprocess
from helpers import SAMPLE_RATE, make_music, make_settings, make_tracks, write_with_ffmpeg
from support import dataset
from support.dataset import PARTS, load_split
from support.errors import UserError
from support.journal import Journal, collect_min_max_values
from support.prior import Prior
from support.settings import Settings
from support.tracks import TrainingTracks
from training.checkpoint import Checkpoint

N_INPUTS = int(os.environ.get("FUZZ_INPUTS", 60))  # of each reader
fuzz = settings(
    max_examples=N_INPUTS,
    derandomize="FUZZ_INPUTS" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=[*HealthCheck],
)


@st.composite
def mutate(draw, *wholes):
    """One of some files with bytes changed, cut, doubled or put in; or random bytes."""
    data = bytearray(draw(st.sampled_from(wholes)))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        change = draw(st.sampled_from(["set", "cut", "insert", "delete", "double", "number"]))
        if change == "set" and data:
            data[place] = draw(st.integers(0, 255))
        elif change == "cut":
            del data[place:]
        elif change == "insert":
            data[place:place] = draw(st.binary(max_size=20))
        elif change == "delete":
            del data[place : place + draw(st.integers(1, 50))]
        elif change == "double":
            data[place:place] = data[place : place + 50]
        elif change == "number":
            size = draw(st.sampled_from([2, 4, 8]))
            value = draw(st.sampled_from([0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size) - 1]))
            order = draw(st.sampled_from(["little", "big"]))
            data[place : place + size] = value.to_bytes(size, order)
    return draw(st.one_of(st.just(bytes(data)), st.just(bytes(data)), st.binary(max_size=200)))


def read(tmp_path, name, data, reader):
    """What a reader gives for these bytes, or None where it raises what it says it raises."""
    path = tmp_path / name
    path.write_bytes(data)
    try:
        return reader(path)
    except (UserError, FileNotFoundError) as error:
        assert str(error)
        return None


def save(save_function, *values, **keywords):
    buffer = io.BytesIO()
    save_function(buffer, *values, **keywords)
    return buffer.getvalue()


@functools.cache
def make_audio():
    """Short files of the formats that differ most."""
    signal = make_music(0.15)
    files = [
        save(soundfile.write, signal, SAMPLE_RATE, format=kind)
        for kind in ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "rf64", "voc")
    ]
    files.append(save(soundfile.write, np.stack([signal] * 6, axis=1), SAMPLE_RATE, format="wav"))
    with tempfile.TemporaryDirectory() as folder:
        for name, codec in (("a.m4a", "aac"), ("a.mkv", "ac3"), ("a.wma", "wmav2")):
            path = write_with_ffmpeg(f"{folder}/{name}", signal[None], codec, sample_rate=44100)
            files.append(Path(path).read_bytes())
    return tuple(files)


@fuzz
@given(data=mutate(*make_audio()))
def test_audio(tmp_path_factory, data):
    loader = preprocess.Loader(SAMPLE_RATE, 0.05, mono=len(data) % 2 == 0)

    pieces = read(
        tmp_path_factory.getbasetemp(), "audio", data, lambda path: [*loader.load_pieces(path)]
    )

    for piece in pieces or ():
        assert piece.dtype == np.float32 and np.isfinite(piece).all()
        assert 0 <= piece.shape[-1] <= loader.n_samples


IMAGES = tuple(
    save(np.save, np.full(shape, 0.5, dtype))
    for shape, dtype in (((4, 6), "f4"), ((4, 6, 2), "f8"), ((3, 3), ">f2"))
)


@fuzz
@given(data=mutate(*IMAGES))
def test_features(tmp_path_factory, data):
    image = read(
        tmp_path_factory.getbasetemp(),
        "feature.npy",
        data,
        lambda path: dataset.load_spectrogram(path.parent, path.name),
    )

    if image is not None:
        assert image.dtype == np.float32 and image.ndim == 3
        assert image.min() >= 0 and image.max() <= 1


VALUES = {f"g/{index}.wav.000.npy": {"min": -80.0, "max": float(index)} for index in range(3)}
NUMPY_VALUES = {key: {"min": np.float32(-8), "max": np.float64(8)} for key in VALUES}
PICKLES = [pickle.dumps(values, n) for values in (VALUES, NUMPY_VALUES) for n in (3, 4)]


@fuzz
@given(data=mutate(*PICKLES))
def test_min_max_values(tmp_path_factory, data):
    values = read(tmp_path_factory.getbasetemp(), "values.pkl", data, dataset.load_min_max_values)

    for entry in (values or {}).values():
        assert {*map(type, entry.values())} == {float}


SETTINGS = dataclasses.asdict(make_settings())
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=9,
)


@st.composite
def change_fields(draw, values):
    """JSON of a dict with some fields replaced, or of anything, or with bytes changed."""
    kept = dict(values)
    for name in draw(st.lists(st.sampled_from(sorted(values)), max_size=3)):
        kept[name] = draw(JSON_VALUES)
    text = json.dumps(draw(st.sampled_from([kept, kept, draw(JSON_VALUES)]))).encode()
    return draw(st.one_of(st.just(text), mutate(text)))


@fuzz
@given(data=change_fields(SETTINGS))
def test_settings(tmp_path_factory, data):
    found = read(tmp_path_factory.getbasetemp(), "settings.json", data, Settings.load)

    if found:
        assert found.n_samples > 0 and found.hop_length * 2 <= found.frame_size


@fuzz
@given(data=change_fields({"train": ["a.wav"], "valid": ["b.wav"], "test": []}))
def test_split(tmp_path_factory, data):
    parts = read(tmp_path_factory.getbasetemp(), "split.json", data, load_split)

    if parts:
        assert [*parts] == [*PARTS]
        assert all(isinstance(track, str) for part in parts.values() for track in part)


FEATURE = b"the features of a.wav and b.wav"
LINES = (
    ["a.wav", [1, 2], len(FEATURE), [[-1.0, 2.0]], "", "ends early", 0.3],
    ["b.wav", [3, 4], len(FEATURE), [[-1.0, 2.0], [3.0, 3.0]], "", "", 0.6],
    ["c.wav", [5, 6], 0, [], "bad", "", 0.0],
    ["d.wav", None, 0, [], "cannot be opened", "", 0.0],
)
STAMPS = {name: stamp or [7, 8] for name, stamp, *_ in LINES}
JOURNAL = b"".join(json.dumps(line).encode() + b"\n" for line in ([1], *LINES))


@fuzz
@example(data=JOURNAL)
@given(data=mutate(JOURNAL))
def test_journal(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "journal"
    folder.mkdir(exist_ok=True)
    for key in ("a.wav.000.npy", "b.wav.000.npy", "b.wav.001.npy"):
        (folder / key).write_bytes(FEATURE)

    outcomes = read(
        folder, "tracks.jsonl", data, lambda path: Journal(path, folder).begin([1], "a", STAMPS)
    )

    if data == JOURNAL:
        assert [*outcomes] == ["a.wav", "b.wav", "c.wav"]
    assert {*(outcomes or {})} <= {*STAMPS}
    for entry in collect_min_max_values(outcomes or {}).values():
        assert -np.inf < entry["min"] <= entry["max"] < np.inf


TRACKS = save(np.savez, **make_tracks(["a.wav", "jazz/b.wav"])._asdict())
ROWS = [{"epoch": 1, "loss": 0.1, "val_loss": 0.2, "learning_rate": 1e-3, "seconds": 1.0}]
CHECKPOINT = save(
    np.savez,
    description=json.dumps({"run": {"a": 1}, "rows": ROWS}),
    best_0=np.zeros((2, 3)),
    state_0=np.ones(2),
)


@fuzz
@given(data=mutate(TRACKS))
def test_tracks(tmp_path_factory, data):
    tracks = read(
        tmp_path_factory.getbasetemp(),
        "tracks.npz",
        data,
        lambda path: TrainingTracks.load(path.parent),
    )

    if tracks:
        assert len(tracks.bands) == tracks.n_steps.sum()
        assert len(tracks.n_steps) == len(tracks.peaks) == len(tracks.tracks) == len(tracks.genres)


def save_prior():
    """A small prior.npz."""
    latents = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        Prior.prepare(make_tracks(["a.wav", "jazz/b.wav"]), [*latents]).save(folder)
        return Path(folder, "prior.npz").read_bytes()


@fuzz
@given(data=mutate(save_prior()))
def test_prior(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    prior = read(folder, "prior.npz", data, lambda path: Prior.load(path.parent))

    if prior:
        assert len(prior.tracks) == len(prior.styles)


@fuzz
@example(data=CHECKPOINT)
@given(data=mutate(CHECKPOINT))
def test_checkpoint(tmp_path_factory, data):
    checkpoint = read(tmp_path_factory.getbasetemp(), "checkpoint.npz", data, Checkpoint.load)

    if checkpoint:
        assert all(row["loss"] is not None for row in checkpoint.rows)
        if data == CHECKPOINT:
            assert [array.shape for array in checkpoint.best + checkpoint.state] == [(2, 3), (2,)]
        with contextlib.suppress(UserError):
            checkpoint.continue_as({"a": 1, "code": ""})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from autoencoder import Autoencoder

    folder = tmp_path_factory.mktemp("fuzzed")
    Autoencoder((8, 6, 1), [2], [3], [2], 2).save(folder)
    return folder


PARAMETERS = {
    "input_shape": [8, 6, 1],
    "conv_filters": [2],
    "conv_kernels": [[3, 3]],
    "conv_strides": [[2, 2]],
    "latent_space_dim": 2,
    "bins_as_channels": False,
    "bin_hz": 0.0,
    "precision": "float32",
}


def refuse_large_models(autoencoder):
    """Raise a UserError for a model that the parameters allow, and that has no room here."""
    sizes = [autoencoder.input_shape, autoencoder.conv_filters, (autoencoder.latent_space_dim,)]
    sizes += [*autoencoder.conv_kernels, *autoencoder.conv_strides]
    if math.prod(math.prod(numbers) for numbers in sizes) > 1e6:
        raise UserError("too large for a test")


@pytest.mark.slow
@fuzz
@given(data=change_fields(PARAMETERS))
def test_parameters(model, data):
    from autoencoder import Autoencoder

    class SmallAutoencoder(Autoencoder):
        def _build(self):
            refuse_large_models(self)
            super()._build()

    found = read(model, "parameters.json", data, lambda path: SmallAutoencoder.load(path.parent))

    if found:
        height, _, channels = found.input_shape
        image = found.decode(np.zeros((1, 2, found.latent_space_dim)))
        assert image.shape == (1, height, 2 * found.frames_per_step, channels)


@pytest.mark.slow
@fuzz
@given(data=st.data())
def test_weights(model, data):
    from autoencoder import Autoencoder

    whole = (model / "model.weights.h5").read_bytes()
    autoencoder = Autoencoder(**PARAMETERS)

    is_loaded = read(
        model,
        "fuzzed.weights.h5",
        data.draw(mutate(whole)),
        lambda path: autoencoder.load_weights(path) or True,
    )

    if is_loaded:
        assert autoencoder.decode(np.zeros((1, 3, 2))).shape == (1, 8, 6, 1)
