"""Damaged, odd and hostile files: audio, features, ranges, models, names."""

import contextlib
import dataclasses
import enum
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
import soundfile

import generate
import preprocess
from helpers import (
    ROOT,
    SAMPLE_RATE,
    load_ranges,
    make_flags,
    make_music,
    make_settings,
    make_tone,
    run_script,
)
from support import dataset, files
from support.dataset import load_split
from support.errors import TemporaryError, UserError
from support.journal import Outcome
from support.settings import Settings
from support.tracks import TrainingTracks


class Fate(enum.Enum):
    """What must become of a file."""

    KEPT = enum.auto()
    SKIPPED = enum.auto()
    EITHER = enum.auto()  # kept or skipped: both are right
    UNSEEN = enum.auto()  # it is hidden, and nothing is said of it


RATES = (8000, 11025, 22050, 44100, 96000, 192000)
SUBTYPES = {
    "wav": "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW IMA_ADPCM MS_ADPCM",
    "aiff": "PCM_S8 FLOAT",
    "au": "PCM_16 DOUBLE",
    "flac": "PCM_S8 PCM_24",
    "caf": "PCM_16",
    "w64": "PCM_24",
    "rf64": "FLOAT",
    "voc": "PCM_U8",
    "ogg": "VORBIS OPUS",
    "mp3": "MPEG_LAYER_III",
}
CUT_FORMATS = ("wav", "aiff", "au", "flac", "ogg", "mp3", "caf", "w64", "rf64")
CUTS = (0, 11, 36, 44, 100, 0.3, 0.7, -1)
NAMES = (
    "two\nlines.wav",
    "🎵 emoji.wav",
    "<script>alert(1)</script>.wav",
    "=cmd|' /C calc'!A1.wav",
    "-rf.wav",
    "\x1b]0;title\x07.wav",
    "n" * 246 + ".wav",
    "長" * 83 + ".wav",
    os.fsdecode(b"latin-\xe9.wav"),
    "x.wav.000.npy",
    "über.WAV",
    "no ending",
    "NUL.wav",
)


def patch(data, offset, form, *values):
    """A copy of bytes with a header's field changed."""
    data = bytearray(data)
    struct.pack_into(form, data, offset, *values)
    return bytes(data)


class Corpus:
    """Writes files of many kinds into a folder.

    Attributes:
        fates: {path: Fate}.
    """

    def __init__(self, folder):
        self.folder = folder
        self.fates = {}

    def put(self, name, data, fate=Fate.SKIPPED):
        """Write a file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.fates[name] = fate

    def put_all(self):
        """Write all kinds."""
        audio = make_music(0.7)
        for rate in RATES:
            signal = make_tone(440, 0.7, rate)
            self.put(f"rates/{rate}.wav", encode(signal, "wav", rate), Fate.KEPT)
        for channels in (1, 2, 3, 6, 16):
            signal = np.stack([audio] * channels, axis=1)
            self.put(f"channels/{channels}.wav", encode(signal, "wav"), Fate.KEPT)
        for kind, subtypes in SUBTYPES.items():
            for subtype in subtypes.split():
                rate = 48000 if subtype == "OPUS" else SAMPLE_RATE
                signal = make_tone(440, 0.7, rate) if subtype == "OPUS" else audio
                data = encode(signal, kind, rate, subtype=subtype)
                self.put(f"subtypes/{subtype}.{kind}", data, Fate.KEPT)
        for name in NAMES:
            self.put(f"names/{name}", encode(audio, "wav"), Fate.KEPT)
        self.put("good.wav", encode(audio, "wav"), Fate.KEPT)
        self.put_damaged(audio)
        self.put_headers(audio)
        self.put_numbers(audio)
        self.put_links()
        self.put_pipes()
        self.put_folders()

    def put_damaged(self, audio):
        """Files that are cut, noisy, of another kind than their name says, or not audio."""
        rng = np.random.default_rng(0)
        for kind in CUT_FORMATS:
            data = encode(audio, kind)
            for cut in CUTS:
                length = int(cut * len(data)) if isinstance(cut, float) else cut % len(data)
                is_usable = kind not in ("ogg", "caf") and 0.5 * len(data) <= length
                fate = Fate.KEPT if is_usable else Fate.EITHER
                self.put(f"cuts/{cut}.{kind}", data[:length], fate)
            for seed in range(4):
                noisy = bytearray(data)
                for place in rng.integers(len(data), size=8):
                    noisy[place] = rng.integers(256)
                self.put(f"noise/{seed}.{kind}", bytes(noisy), Fate.EITHER)
            self.put(f"swapped/{kind}.wav", data, Fate.KEPT)
        self.put("empty.wav", b"")
        self.put("zeros.wav", bytes(10_000))
        self.put("random.mp3", rng.bytes(10_000), Fate.EITHER)
        self.put("text.flac", b"no audio at all\n" * 100)
        self.put("page.wav", b"<!doctype html><title>404</title>")
        self.put("cover.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF" + rng.bytes(2000), Fate.EITHER)
        self.put("no samples.wav", encode(np.zeros(0), "wav"))
        self.put("one sample.wav", encode(np.ones(1), "wav"))
        self.put("silence.wav", encode(np.zeros(8000), "wav"), Fate.KEPT)

    def put_headers(self, audio):
        """WAV and other headers that lie."""
        wav, flac, au, aiff = (encode(audio, kind) for kind in ("wav", "flac", "au", "aiff"))
        place = wav.index(b"data") + 4
        streamed = patch(patch(wav, 4, "<I", 0xFFFFFFFF), place, "<I", 0xFFFFFFFF)
        self.put("headers/length of a stream.wav", streamed, Fate.KEPT)
        self.put("headers/length of sox.wav", patch(wav, place, "<I", 0x7FFFF000), Fate.KEPT)
        too_long = patch(wav, place, "<I", len(wav) * 10)
        self.put("headers/length too long.wav", too_long, Fate.KEPT)
        fields = [("channels", "<H", 22), ("rate", "<I", 24), ("align", "<H", 32)]
        fields += [("bits", "<H", 34), ("format", "<H", 20)]
        lies = {
            f"{name} {number}.wav": patch(wav, offset, form, number)
            for name, form, offset in fields
            for number in (0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
            if number < 256 ** struct.calcsize(form)
        }
        lies["length of 0.wav"] = patch(wav, place, "<I", 0)
        lies["riff too long.wav"] = patch(wav, 4, "<I", 0xFFFFFFF0)
        lies["chunk of 4 GB.wav"] = wav[:12] + b"LIST" + struct.pack("<I", 0xFFFFFFF0) + wav[12:]
        lies["64 G samples.flac"] = flac[:21] + b"\x0f\xff\xff\xff\xff" + flac[26:]
        lies["data at 4 GB.au"] = patch(au, 4, ">I", 0xFFFFFFFF)
        lies["4 GB.au"] = patch(au, 8, ">I", 0xFFFFFFF0)
        lies["4 G frames.aiff"] = patch(aiff, aiff.index(b"COMM") + 10, ">I", 0xFFFFFFFF)
        for name, data in lies.items():
            self.put(f"headers/{name}", data, Fate.EITHER)

    def put_numbers(self, audio):
        """Sounds with one absurd sample, as they are and resampled."""
        for name, value in (("nan", np.nan), ("infinity", np.inf), ("huge", 1e38), ("1e11", 1e11)):
            signal = audio.copy()
            signal[5000] = value
            for rate in (SAMPLE_RATE, 44100):
                data = encode(signal, "wav", rate, subtype="FLOAT")
                self.put(f"numbers/{name} at {rate} Hz.wav", data)

    def put_links(self):
        """Links to files and folders, here and outside."""
        outside = self.folder.parent / "outside"
        outside.mkdir()
        soundfile.write(outside / "secret.wav", make_tone(), SAMPLE_RATE)
        targets = {
            "file.wav": self.folder / "good.wav",
            "dangling.wav": "nowhere.wav",
            "itself.wav": "itself.wav",
            "outside": outside,
            "outside.wav": outside / "secret.wav",
            "loop": self.folder,
        }
        (self.folder / "links").mkdir()
        for name, target in targets.items():
            (self.folder / "links" / name).symlink_to(target)
        self.fates |= {f"links/{name}.wav": Fate.SKIPPED for name in ("dangling", "itself")}
        self.fates["links/outside/secret.wav"] = Fate.KEPT  # what other names lead to has its own

    def put_pipes(self):
        """A pipe and a socket."""
        os.mkfifo(self.folder / "pipe.wav")
        with socket.socket(socket.AF_UNIX) as unix, contextlib.chdir(self.folder):
            unix.bind("socket.wav")  # whose path may not be long
        self.fates |= {"pipe.wav": Fate.SKIPPED, "socket.wav": Fate.SKIPPED}

    def put_folders(self):
        """Audio in folders with names of files, hidden, and with names that are paths elsewhere."""
        data = encode(make_tone(), "wav")
        for name, fate in (
            ("folder.wav/x.wav", Fate.KEPT),
            ("other.wav.000.npy/x.wav", Fate.KEPT),
            (".hidden/x.wav", Fate.UNSEEN),
            (".hidden.wav", Fate.UNSEEN),
            ("x\\..\\..\\up.wav", Fate.KEPT),
            ("C:drive.wav", Fate.KEPT),
            ("\\root.wav", Fate.KEPT),
        ):
            self.put(name, data, fate)


def encode(signal, kind, sample_rate=SAMPLE_RATE, **keywords):
    """The bytes of an audio file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, signal, sample_rate, format=kind, **keywords)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    corpus = Corpus(tmp_path_factory.mktemp("corpus") / "audio")
    corpus.put_all()
    return corpus


@pytest.mark.slow
@pytest.mark.parametrize("channels", ["--mono", "--no-mono"])
def test_no_file_crashes_a_run_or_costs_a_good_one(tmp_path, corpus, channels):
    flags = ("--audio_files_dir", corpus.folder, *make_flags(), channels, "--jobs", "1")

    done = run_script("preprocess.py", *flags, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    strange = [
        line for line in done.stderr.splitlines() if not line.startswith(("skipped ", "note: "))
    ]
    assert not strange, strange[:5]
    saved = tmp_path / "saved_data"
    lines = (saved / "min_max_values" / "tracks.jsonl").read_bytes().splitlines()[1:]
    outcomes = {name: Outcome(*fields) for name, *fields in map(json.loads, lines)}
    fates = {name: fate for name, fate in corpus.fates.items() if fate != Fate.UNSEEN}
    assert outcomes.keys() == fates.keys()
    wrong = {
        name: outcomes[name].reason or "kept"
        for name, fate in fates.items()
        if fate != (Fate.KEPT if outcomes[name].ranges else Fate.SKIPPED) and fate != Fate.EITHER
    }
    assert not wrong
    values = load_ranges(saved)
    assert len(fates) > 150 and len(values) > 100
    assert dataset.list_keys(saved / "spectrograms") == sorted(
        values, key=lambda key: (dataset.get_track(key), len(key), key)
    )
    for key in values:
        image = dataset.load_spectrogram(saved / "spectrograms", key)
        assert image.shape == (128, 104, 1 if channels == "--mono" else 2)
    secret = {dataset.get_track(key) for key in values if "secret" in key}
    assert secret == {"links/outside/secret.wav"}  # a link of the user's, followed once


def test_a_header_that_lies_takes_no_memory(corpus):
    code = (
        "import resource, sys; from pathlib import Path; import preprocess\n"
        "loader = preprocess.Loader(22050, 0.3, True)\n"
        "def read(path):\n"
        "    try: return sum(len(piece) for piece in loader.load_pieces(path))\n"
        "    except ValueError: return 0\n"
        "read('good.wav')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in ('headers', 'cuts', 'noise'):\n"
        "    for path in sorted(Path(name).iterdir()): assert read(path) < 3e7, path\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=corpus.folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000  # KiB beyond that for one good file


class Attack:
    """An object whose pickle calls a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


GOOD = {"a.npy": {"min": -80.0, "max": 0.0}}
BAD_VALUES = (
    [GOOD],
    {"a.npy": Attack(os.system, "echo pwned > pwned")},
    {"a.npy": {"min": Attack(os.getcwd), "max": 0.0}},
    {"a.npy": {"min": np.float64(-1), "max": 0.0}},
    {"a.npy": {"min": 0.0}},
    {"a.npy": {"min": "0", "max": "x"}},
    {"a.npy": [0.0, 1.0]},
)
BAD_PICKLES = (pickle.dumps(GOOD)[:-3], b"", b".")


@pytest.mark.parametrize("data", [*map(pickle.dumps, BAD_VALUES), *BAD_PICKLES])
def test_a_hostile_pickle_does_nothing(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "min_max_values.pkl"
    path.write_bytes(data)

    with pytest.raises(UserError, match=r"min_max_values\.pkl is damaged, .*: delete it"):
        dataset.load_min_max_values(path)
    assert [*tmp_path.iterdir()] == [path]


def test_a_pickle_that_counts_far_takes_no_memory(tmp_path):
    path = tmp_path / "min_max_values.pkl"
    path.write_bytes(b"\x80\x02}r" + struct.pack("<I", 1 << 27) + b".")
    tracemalloc.start()
    dataset.load_min_max_values(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("character", ["x", "🎵", os.fsdecode(b"\xe9")])
def test_the_ranges_of_keys_of_any_length_are_read(tmp_path, character):
    keys = [f"{character * (1 + n % 200)}.{n:03d}.npy" for n in range(2000)]
    values = {key: {"min": -1.0 - n, "max": float(n)} for n, key in enumerate(keys)}
    preprocess.Saver(tmp_path, tmp_path).save_min_max_values(values)

    assert dataset.load_min_max_values(tmp_path / "min_max_values.pkl") == values


def make_npy(header, data=b"", version=(1, 0)):
    """A .npy file with any header."""
    text = header.encode() if isinstance(header, str) else header
    form = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(form, len(text)) + text + data


def format_header(shape, descr="'<f4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


def format_npz():
    buffer = io.BytesIO()
    np.savez(buffer, np.zeros((4, 4), np.float32))
    return buffer.getvalue()


BAD_HEADERS = (
    make_npy("(" * 9000),
    make_npy("{'descr': __import__('os').system('touch pwned')}"),
    make_npy(" " * 60_000),
    make_npy("'", version=(3, 0)),
    format_npz(),
    b"",
    b"\x93NUMPY\x01\0\xff\xff",
    b"PK\x03\x04" + bytes(100),
    pickle.dumps(Attack(os.system, "touch pwned")),
)
BAD_SHAPES = {  # shape: bytes of data
    "(4, 4)": 63,
    "(1000000, 1000000)": 64,
    "(-4, -4)": 64,
    "(0, 99999999999999999999)": 0,
    "(0, 4)": 0,
    "()": 4,
    "(2, 2, 2, 2)": 64,
}
BAD_TYPES = {  # type: bytes of data
    "'|O'": 128,
    "[('a', '<f4')]": 64,
    "'<i4'": 64,
    "'<U0'": 0,
    "'<c8'": 128,
}
BAD_FEATURES = [
    *BAD_HEADERS,
    *(make_npy(format_header(shape), bytes(length)) for shape, length in BAD_SHAPES.items()),
    *(make_npy(format_header("(4, 4)", t), bytes(length)) for t, length in BAD_TYPES.items()),
    *(
        make_npy(format_header("(4, 4)"), np.full(16, value, "<f4").tobytes())
        for value in (np.nan, np.inf, 1.01, -0.01)
    ),
    *(
        make_npy(format_header("(4, 4)", "'<f8'"), np.full(16, value, "<f8").tobytes())
        for value in (1.01, 1e300)
    ),
]


@pytest.mark.parametrize("data", BAD_FEATURES)
def test_a_hostile_feature_is_refused(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npy"
    path.write_bytes(data)

    with pytest.raises(UserError, match=r"a\.npy is "):
        dataset.load_spectrogram(tmp_path, "a.npy")
    assert [*tmp_path.iterdir()] == [path]


def test_a_feature_of_a_terabyte_is_refused_unread(tmp_path):
    header = make_npy(format_header("(1000000, 262144)"))
    with open(tmp_path / "a.npy", "wb") as file:
        file.write(header)
        file.truncate(len(header) + 4 * 262144 * 1000000)  # with no block on the disk

    with pytest.raises(UserError, match="is not a spectrogram"):
        dataset.load_spectrogram(tmp_path, "a.npy")


def test_no_feature_is_written_or_deleted_through_a_link(tmp_path, write_audio):
    write_audio("g/a.wav", make_music(0.4))
    preprocess.preprocess_folder(tmp_path / "audio", tmp_path / "saved", make_settings(), jobs=1)
    outside = tmp_path / "outside"
    (tmp_path / "saved" / "spectrograms" / "g").rename(outside)
    (outside / "mine.npy").write_text("mine")
    (tmp_path / "saved" / "spectrograms" / "g").symlink_to(outside)
    write_audio("g/a.wav", make_tone(duration=0.4))
    before = {path.name: path.read_bytes() for path in outside.iterdir()}

    with pytest.raises(UserError, match="is a link to elsewhere"):
        preprocess.preprocess_folder(
            tmp_path / "audio", tmp_path / "saved", make_settings(), jobs=1
        )

    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before


def load_weights(path):
    from autoencoder import Autoencoder

    Autoencoder((16, 12, 1), [4], [3], [2], 3).load_weights(path)


@pytest.mark.parametrize(
    "reader",
    [
        load_weights,
        Settings.load,
        dataset.load_min_max_values,
        load_split,
        files.read_json,
        files.load_arrays,
        lambda path: dataset.load_spectrogram(path.parent, path.name),
    ],
)
def test_readers_do_not_wait_for_a_pipe(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(UserError, match="is not a regular file"):
        reader(tmp_path / "pipe")


@pytest.mark.parametrize(
    "fields",
    [
        {"sample_rate": "22050"},
        {"sample_rate": 1e9},
        {"frame_size": 1 << 40},
        {"hop_length": 200},
        {"duration": float("nan")},
        {"duration": 3600, "hop_length": 1},
        {"format_version": 3},
        {"unknown": 1},
    ],
)
def test_hostile_settings_are_refused(tmp_path, fields):
    path = tmp_path / "settings.json"
    files.write_json(path, {**dataclasses.asdict(make_settings()), **fields})

    with pytest.raises(UserError, match=r"settings\.json is damaged, or of another version"):
        Settings.load(path)


def test_settings_of_before_segments_went_are_read(tmp_path):
    path = tmp_path / "settings.json"
    files.write_json(path, {**dataclasses.asdict(make_settings()), "segments": "all"})

    assert Settings.load(path) == make_settings()


@pytest.mark.parametrize("text", ["[" * 100_000, "null", "9" * 5000])
def test_json_that_is_damaged_is_refused(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)

    with pytest.raises(UserError, match=r"settings\.json is damaged"):
        Settings.load(tmp_path / "settings.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with a small model."""
    from autoencoder import Autoencoder

    folder = tmp_path_factory.mktemp("model")
    Autoencoder((16, 12, 1), [4], [3], [2], 3).save(folder)
    return folder


def copy_model(model, tmp_path, **fields):
    """A copy of the model with some parameters changed."""
    for name in ("parameters.json", "model.weights.h5"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    parameters = {**files.read_json(model / "parameters.json"), **fields}
    kept = {name: value for name, value in parameters.items() if value is not ...}
    files.write_json(tmp_path / "parameters.json", kept)
    return tmp_path


@pytest.mark.parametrize(
    "fields",
    [
        {"input_shape": None},
        {"input_shape": [-16, -12, 1]},
        {"input_shape": [16, 12, 1 << 40]},
        {"conv_filters": [1 << 40]},
        {"conv_filters": []},
        {"conv_kernels": [1 << 30]},
        {"conv_strides": [0]},
        {"latent_space_dim": 10**12},
        {"latent_space_dim": "3"},
        {"latent_space_dim": float("inf")},
        {"unknown": 1},
        {"bins_as_channels": ..., "precision": ...},  # as a version before wrote them
    ],
)
def test_a_hostile_model_is_refused_before_it_is_built(model, tmp_path, fields, monkeypatch):
    from autoencoder import Autoencoder

    def refuse(autoencoder):
        raise AssertionError("it was built")

    monkeypatch.setattr(Autoencoder, "_build", refuse)
    with pytest.raises(UserError, match=r"parameters\.json(: | is damaged).*train\.py again"):
        Autoencoder.load(copy_model(model, tmp_path, **fields))


@pytest.mark.parametrize("fields", [{"conv_filters": [3]}, {"latent_space_dim": 2}])
def test_weights_of_another_shape_get_one_clear_line(
    model, tmp_path, monkeypatch, capfd, recwarn, fields
):
    monkeypatch.chdir(tmp_path)
    copy_model(model, tmp_path, **fields)
    make_settings(frame_size=32, hop_length=8, duration=0.1).save(tmp_path / "settings.json")

    with pytest.raises(UserError, match=r"weights\.h5 is damaged, or of another version"):
        generate.main(["--model", str(tmp_path), "sample", "1"])
    assert capfd.readouterr().err == ""
    assert all(warning.category is DeprecationWarning for warning in recwarn)  # which is not shown


def link(file, name):
    file[name] = h5py.ExternalLink("secret.h5", "/numbers")


def link_inside(file, name):
    file[name] = h5py.SoftLink("/layers")


def virtualise(file, name):
    layout = h5py.VirtualLayout(4, "f8")
    layout[:] = h5py.VirtualSource("secret.h5", "numbers", 4)
    file.create_virtual_dataset(name, layout)


def read_outside(file, name):
    file.create_dataset(name, 4, "f8", external=[("/etc/passwd", 0, 32)])


def bomb(file, name):
    file.create_dataset(name, (1 << 34,), "f4", chunks=(1 << 20,), compression="gzip")


@pytest.mark.parametrize("attack", [link, link_inside, virtualise, read_outside, bomb])
def test_weights_that_refer_to_other_files_are_refused(model, tmp_path, attack):
    from autoencoder import Autoencoder

    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["numbers"] = np.zeros(4)
    copy_model(model, tmp_path)
    names = []
    with h5py.File(tmp_path / "model.weights.h5", "a") as file:
        file.visititems(lambda name, part: names.append(name) if hasattr(part, "dtype") else None)
        del file[names[0]]
        attack(file, names[0])

    with pytest.raises(UserError, match=r"weights\.h5 is damaged"):
        Autoencoder.load(tmp_path)


def test_an_archive_that_lies_holds_objects_or_is_compressed_is_refused(tmp_path):
    path = tmp_path / "latents.npz"
    np.savez(path, latent=np.array([{}], object))
    with pytest.raises(ValueError, match="allow_pickle"):
        files.load_arrays(path)

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("latent.npy", make_npy(format_header("(99999999, 99999999)"), bytes(64)))
    with pytest.raises((ValueError, MemoryError)):
        files.load_arrays(path)

    np.savez_compressed(path, latent=np.zeros(9))
    with pytest.raises(UserError, match="it is compressed, and may be of any size"):
        files.load_arrays(path)


def test_what_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch):
    def refuse(path):
        raise TemporaryError("cannot be opened (Permission denied)")

    for name in ("tracks.npz", "a.pkl", "settings.json", "a.npy"):
        (tmp_path / name).touch()
    monkeypatch.setattr(files, "open_regular", refuse)

    for read in (
        lambda: TrainingTracks.load(tmp_path),
        lambda: dataset.load_min_max_values(tmp_path / "a.pkl"),
        lambda: dataset.load_spectrogram(tmp_path, "a.npy"),
        lambda: Settings.load(tmp_path / "settings.json"),
    ):
        with pytest.raises(
            TemporaryError, match=r"/\w+\.\w+ cannot be opened \(Permission denied\)$"
        ):
            read()
