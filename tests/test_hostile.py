"""Damaged, odd and hostile files: audio, features, ranges, models, names."""

import csv
import html.parser
import os
import pickle
import socket
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import SAMPLE_RATE, make_music, make_tone

import generate
import preprocess
from generation.page import write_page
from generation.prior import load_training_pieces
from generation.ways import Item, make_wav_names
from support import arrays, dataset, files
from support.journal import Track
from training.splits import load_split

ROOT = Path(__file__).resolve().parent.parent
RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)
SUBTYPES = (
    ("wav", "PCM_U8"), ("wav", "PCM_16"), ("wav", "PCM_24"), ("wav", "PCM_32"), ("wav", "FLOAT"),
    ("wav", "DOUBLE"), ("wav", "ULAW"), ("wav", "ALAW"), ("wav", "IMA_ADPCM"), ("wav", "MS_ADPCM"),
    ("aiff", "PCM_S8"), ("aiff", "FLOAT"), ("au", "PCM_16"), ("au", "DOUBLE"), ("flac", "PCM_S8"),
    ("flac", "PCM_24"), ("caf", "PCM_16"), ("w64", "PCM_24"), ("rf64", "FLOAT"), ("voc", "PCM_U8"),
    ("ogg", "VORBIS"), ("ogg", "OPUS"), ("mp3", "MPEG_LAYER_III"),
)  # fmt: skip
CUT_FORMATS = ("wav", "aiff", "au", "flac", "ogg", "mp3", "caf", "w64", "rf64")
CUTS = (0, 1, 4, 11, 12, 20, 36, 43, 44, 45, 60, 100, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, -1, -2)
STRICT_FORMATS = ("wav", "aiff", "au", "flac", "w64", "rf64")  # whose cuts are all noticed
NAMES = (
    "two\nlines.wav", "tab\t.wav", "'quotes\".wav", "🎵 emoji.wav", "<script>alert(1)</script>.wav",
    "=cmd|' /C calc'!A1.wav", "-rf.wav", "100%.wav", "a b  c.wav", "\x1b]0;title\x07.wav",
    "n" * 246 + ".wav", "長" * 83 + ".wav", os.fsdecode(b"latin-\xe9.wav"), "x.wav.000.npy",
    "{{ 7 * 7 }}.wav", "a.wav.001", "über.WAV", "no ending", "NUL.wav", "$(id).wav",
)  # fmt: skip


def patch(data, offset, form, *values):
    """A copy of bytes with a header's field changed."""
    data = bytearray(data)
    struct.pack_into(form, data, offset, *values)
    return bytes(data)


def make_corpus(folder):
    """Write files of many kinds; {path: whether it must be kept, or None where either is right}."""
    expected = {}
    audio = make_music(0.7)

    def write(name, signal=audio, sample_rate=SAMPLE_RATE, keep=True, **keywords):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = keywords.pop("format", None)
        with open(path, "wb") as file:
            soundfile.write(file, signal, sample_rate, format=kind or "wav", **keywords)
        expected[name] = keep
        return path.read_bytes()

    def put(name, data, keep=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        expected[name] = keep

    for rate in RATES:
        write(f"rates/{rate}.wav", make_tone(440, 0.7, rate), rate)
    for channels in range(1, 17):
        write(f"channels/{channels}.wav", np.stack([audio] * channels, axis=1))
    for kind, subtype in SUBTYPES:
        rate = 48000 if subtype == "OPUS" else SAMPLE_RATE
        signal = make_tone(440, 0.7, rate) if subtype == "OPUS" else audio
        write(f"subtypes/{subtype}.{kind}", signal, rate, format=kind, subtype=subtype)
    for name in NAMES:
        write(f"names/{name}")
    put_damaged(put, audio)
    put_headers(put, write("good.wav"))
    put_no_files(folder, expected)
    return expected


def encode(signal, kind):
    import io

    buffer = io.BytesIO()
    soundfile.write(buffer, signal, SAMPLE_RATE, format=kind)
    return buffer.getvalue()


def put_damaged(put, audio):
    rng = np.random.default_rng(0)
    for kind in CUT_FORMATS:
        data = encode(audio, kind)
        for cut in CUTS:
            length = int(cut * len(data)) if isinstance(cut, float) else cut % len(data)
            keep = False if kind in STRICT_FORMATS and length < len(data) - 1 else None
            put(f"cuts/{cut}.{kind}", data[:length], keep)
        for seed in range(4):
            noisy = bytearray(data)
            for place in rng.integers(len(data), size=8):
                noisy[place] = rng.integers(256)
            put(f"noise/{seed}.{kind}", bytes(noisy), None)
        put(f"swapped/{kind}.wav", data, True)  # the name tells another format than the content
    put("empty.wav", b"")
    put("zeros.wav", bytes(10_000))
    put("random.mp3", rng.bytes(10_000), None)
    put("text.flac", b"no audio at all\n" * 100)
    put("page.wav", b"<!doctype html><title>404</title>")
    put("cover.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF" + rng.bytes(2000), None)
    put("no samples.wav", encode(np.zeros(0), "wav"))
    put("one sample.wav", encode(np.ones(1), "wav"))
    put("silence.wav", encode(np.zeros(8000), "wav"), True)


def put_headers(put, wav):
    """Put WAV and other headers that lie."""
    place = wav.index(b"data") + 4
    streamed = patch(patch(wav, 4, "<I", 0xFFFFFFFF), place, "<I", 0xFFFFFFFF)
    put("headers/length of a stream.wav", streamed, True)
    put("headers/length of sox.wav", patch(wav, place, "<I", 0x7FFFF000), True)
    put("headers/length too long.wav", patch(wav, place, "<I", len(wav) * 10))
    put("headers/length of 0.wav", patch(wav, place, "<I", 0), None)
    put("headers/riff too long.wav", patch(wav, 4, "<I", 0xFFFFFFF0), None)
    for name, form, value in (("channels", "<H", 22), ("rate", "<I", 24), ("align", "<H", 32),
                              ("bits", "<H", 34), ("format", "<H", 20)):  # fmt: skip
        for number in (0, 1, 0x7FFF, 0xFFFF, *((0x7FFFFFFF, 0xFFFFFFFF) * (form == "<I"))):
            put(f"headers/{name} {number}.wav", patch(wav, value, form, number), None)
    huge = wav[:12] + b"LIST" + struct.pack("<I", 0xFFFFFFF0) + wav[12:]
    put("headers/chunk of 4 GB.wav", huge, None)
    flac = encode(make_music(0.7), "flac")
    put("headers/64 G samples.flac", flac[:21] + b"\x0f\xff\xff\xff\xff" + flac[26:], None)
    au = encode(make_music(0.7), "au")
    put("headers/data at 4 GB.au", patch(au, 4, ">I", 0xFFFFFFFF), None)
    put("headers/4 GB.au", patch(au, 8, ">I", 0xFFFFFFF0), None)
    aiff = encode(make_music(0.7), "aiff")
    frames = aiff.index(b"COMM") + 10
    put("headers/4 G frames.aiff", patch(aiff, frames, ">I", 0xFFFFFFFF), None)
    for name, values in (("nan", np.nan), ("infinity", np.inf), ("huge", 1e38), ("1e11", 1e11)):
        import io

        buffer = io.BytesIO()
        signal = make_music(0.7)
        signal[5000] = values
        soundfile.write(buffer, signal, SAMPLE_RATE, format="wav", subtype="FLOAT")
        put(f"numbers/{name}.wav", buffer.getvalue())
        buffer = io.BytesIO()
        soundfile.write(buffer, signal, 44100, format="wav", subtype="FLOAT")
        put(f"numbers/{name} at 44.1 kHz.wav", buffer.getvalue())


def put_no_files(folder, expected):
    """Links, pipes, sockets, and folders with names of files."""
    outside = folder.parent / "outside"
    outside.mkdir()
    soundfile.write(outside / "secret.wav", make_tone(), SAMPLE_RATE)
    links = folder / "links"
    links.mkdir()
    (links / "file.wav").symlink_to(folder / "good.wav")
    (links / "dangling.wav").symlink_to("nowhere.wav")
    (links / "itself.wav").symlink_to("itself.wav")
    (links / "outside").symlink_to(outside)
    (links / "outside.wav").symlink_to(outside / "secret.wav")
    (links / "loop").symlink_to(folder)
    for name in ("file.wav", "dangling.wav", "itself.wav", "outside", "outside.wav", "loop"):
        expected[f"links/{name}"] = False
    os.mkfifo(folder / "pipe.wav")
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(folder)  # a socket's path may not be long
        unix.bind("socket.wav")
        os.chdir(here)
    expected |= {"pipe.wav": False, "socket.wav": False}
    for name, keep in (("folder.wav/x.wav", True), ("good.wav.000.npy/x.wav", False),
                       ("good.wav.001.npy/other.wav.000.npy/x.wav", False),
                       ("other.wav.000.npy/x.wav", True),
                       (".hidden/x.wav", "hidden"), (".hidden.wav", "hidden"),
                       ("x\\..\\..\\up.wav", False), ("C:drive.wav", False),
                       ("\\root.wav", False)):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(str(folder / name), make_tone(), SAMPLE_RATE, format="wav")
        expected[name] = keep


def read_skipped(saved):
    with open(saved / "skipped.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


@pytest.mark.parametrize("channels", ["--mono", "--no-mono"])
def test_no_file_crashes_a_run_or_costs_a_good_one(tmp_path, channels):
    expected = make_corpus(tmp_path / "audio")
    command = [
        sys.executable, str(ROOT / "preprocess.py"), "--audio_files_dir", "audio", "--frame_size",
        "256", "--hop_length", "64", "--duration", "0.3", channels,
    ]  # fmt: skip

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    assert done.returncode == 0, done.stderr
    strange = [line for line in done.stderr.splitlines() if not line.startswith("skipped ")]
    assert not strange, strange[:5]
    values = dataset.load_min_max_values(dataset.get_min_max_path(tmp_path / "saved_data"))
    journal = tmp_path / "saved_data" / "min_max_values" / "tracks.jsonl"
    tracks = dict(map(Track.parse, journal.read_bytes().splitlines()[1:]))
    wrong = {
        name: tracks[name].reason or "kept"
        for name, keep in expected.items()
        if keep in (True, False) and bool(tracks[name].ranges) != keep
    }
    assert not wrong
    assert not [name for name, keep in expected.items() if keep == "hidden" and name in tracks]
    assert tracks.keys() == {name for name, keep in expected.items() if keep != "hidden"}
    assert len(expected) > 250 and len(values) == len({*values}) > 200
    assert dataset.list_keys(tmp_path / "saved_data" / "spectrograms") == sorted(
        values, key=lambda key: (dataset.get_track(key), len(key), key)
    )
    for key in values:
        image = dataset.load_spectrogram(tmp_path / "saved_data" / "spectrograms", key)
        assert image.shape == (128, 104, 1 if channels == "--mono" else 2)
    assert not any("secret" in key or "outside" in key for key in values)


def test_a_header_that_lies_takes_no_memory(tmp_path):
    make_corpus(tmp_path / "audio")
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
        [sys.executable, "-c", code], cwd=tmp_path / "audio", capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000  # KiB beyond that for one good file


class Attack:
    """An object whose pickle calls a function with arguments."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


# A tuple of twice the same tuple of twice the same tuple ...: to hash it takes 2 ** 60 steps.
DEEP = b"K\x01" + b"q\x00h\x00\x86" * 60
DTYPE = b"cnumpy\ndtype\n"
MANY = dict.fromkeys(map(str, range(9999)), 1.0)


GOOD = {"a.npy": {"min": -80.0, "max": 0.0}}


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({"a.npy": Attack(os.system, "echo pwned > pwned")}),
        pickle.dumps(Attack(eval, "open('pwned', 'w')")),
        pickle.dumps({"a.npy": {"min": Attack(os.getcwd), "max": 0.0}}),
        pickle.dumps({"a.npy": {"min": np.zeros(3), "max": 0.0}}),
        pickle.dumps({"a.npy": {"min": np.array([None], object), "max": 0.0}}),
        pickle.dumps({"a.npy": {"min": float("nan"), "max": 0.0}}),
        pickle.dumps({"a.npy": {"min": 0.0, "max": float("inf")}}),
        pickle.dumps({"a.npy": {"min": 1.0, "max": 0.0}}),
        pickle.dumps({"a.npy": {"min": 0.0}}),
        pickle.dumps({"a.npy": {"min": "0", "max": "x"}}),
        pickle.dumps({"a.npy": [0.0, 1.0]}),
        pickle.dumps({1: {"min": 0.0, "max": 1.0}}),
        pickle.dumps({"../a.npy": GOOD["a.npy"]}),
        pickle.dumps({"x/../../a.npy": GOOD["a.npy"]}),
        pickle.dumps({"..\\a.npy": GOOD["a.npy"]}),
        pickle.dumps({"/etc/a.npy": GOOD["a.npy"]}),
        pickle.dumps({"C:/a.npy": GOOD["a.npy"]}),
        pickle.dumps({"c:a.npy": GOOD["a.npy"]}),
        pickle.dumps({"\\\\server\\a.npy": GOOD["a.npy"]}),
        pickle.dumps({"a\0.npy": GOOD["a.npy"]}),
        pickle.dumps([GOOD]), pickle.dumps(None), pickle.dumps(GOOD)[:-3], b"", b".", b"\x80\x04.",
        b"\x80\x05\x96\xff\xff\xff\xff\x0f\0\0\0.",  # a bytearray of 64 GiB
        b"\x80\x04}" + DEEP + b"K\x01s.", b"\x80\x04(" + DEEP + b"K\x01d.",
        b"\x80\x04}(" + DEEP + b"K\x01u.", b"\x80\x04" + DTYPE + DEEP + b"\x85R.",
        b"\x80\x04" + DTYPE + b"X\x02\0\0\0f4\x85RK\x03" + DEEP + b"\x86b.",
        pickle.dumps(dict.fromkeys(map(str, range(9999)), MANY)),  # all the same dict
    ],
)  # fmt: skip
def test_a_hostile_pickle_does_nothing(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "min_max_values.pkl"
    path.write_bytes(data)

    with pytest.raises(ValueError, match=r"min_max_values\.pkl holds no min-max values"):
        dataset.load_min_max_values(path)
    assert [*tmp_path.iterdir()] == [path]


def test_a_pickle_takes_no_memory_for_a_memo_index():
    tracemalloc.start()

    values = arrays.load_pickled_floats(b"\x80\x04}r\xff\xff\xff\x7f.")

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert values == {} and peak < 1e6  # Python's fast unpickler asks for 32 GiB


def test_a_pickle_of_numpy_scalars_is_read():
    old = {"a.npy": {"min": np.float32(-3.25), "max": np.float64(2.5)}}
    older = pickle.dumps(old).replace(b"\x16numpy._core.", b"\x15numpy.core.")

    for data in (pickle.dumps(old), older):
        values = arrays.load_pickled_floats(data)
        assert values == {"a.npy": {"min": -3.25, "max": 2.5}}
        assert {type(number) for number in values["a.npy"].values()} == {float}


def make_npy(header, data=b"", version=(1, 0)):
    """A .npy file with any header."""
    text = header.encode() if isinstance(header, str) else header
    form = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(form, len(text)) + text + data


def format_header(shape, descr="'<f4'"):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


@pytest.mark.parametrize(
    "data",
    [
        make_npy(format_header("(4, 4)"), bytes(63)),
        make_npy(format_header("(4, 4)"), bytes(65)),
        make_npy(format_header("(1000000, 1000000)"), bytes(64)),
        make_npy(format_header("(99999999999, 99999999999)"), bytes(64)),
        make_npy(format_header("(-4, -4)"), bytes(64)),
        make_npy(format_header("(0, 99999999999999999999)")),
        make_npy(format_header("(99, 99)", "'<U0'")), make_npy(format_header("(0, 4)")),
        make_npy(format_header("(4,)"), bytes(16)),
        make_npy(format_header("()"), bytes(4)), make_npy(format_header("(2, 2, 2, 2)"), bytes(64)),
        make_npy(format_header("(4, 4)", "'|O'"), bytes(128)),
        make_npy(format_header("(4, 4)", "[('a', '<f4')]"), bytes(64)),
        make_npy(format_header("(4, 4)", "'<i4'"), bytes(64)),
        make_npy(format_header("(4, 4)", "'<U1'"), bytes(64)),
        make_npy(format_header("(4, 4)", "'<f16'"), bytes(256)),
        make_npy(format_header("(4, 4)"), np.full(16, np.nan, "<f4").tobytes()),
        make_npy(format_header("(4, 4)"), np.full(16, np.inf, "<f4").tobytes()),
        make_npy(format_header("(4, 4)"), np.full(16, 1.01, "<f4").tobytes()),
        make_npy(format_header("(4, 4)"), np.full(16, -0.01, "<f4").tobytes()),
        make_npy("(" * 9000), make_npy("[" * 9000 + "]" * 9000, version=(2, 0)),
        make_npy("{'descr': __import__('os').system('touch pwned')}"),
        make_npy(" " * 60_000), make_npy("\0" * 100), make_npy("'", version=(1, 0)),
        make_npy(format_header("(4, 4)"), bytes(64), version=(3, 0)),
        b"", b"\x93NUMPY", b"\x93NUMPY\x01\0\xff\xff", b"PK\x03\x04" + bytes(100),
        pickle.dumps(Attack(os.system, "touch pwned")),
    ],
)  # fmt: skip
def test_a_hostile_feature_is_refused(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.npy"
    path.write_bytes(data)

    with pytest.raises(ValueError, match=r"a\.npy (is|holds)"):
        dataset.load_spectrogram(tmp_path, "a.npy")
    assert [*tmp_path.iterdir()] == [path]


def test_a_feature_of_a_terabyte_is_refused_unread(tmp_path):
    header = make_npy(format_header("(1000000, 262144)"))
    with open(tmp_path / "a.npy", "wb") as file:
        file.write(header)
        file.truncate(len(header) + 4 * 262144 * 1000000)  # with no block on the disk

    with pytest.raises(ValueError, match="no finite spectrogram"):
        dataset.load_spectrogram(tmp_path, "a.npy")


@pytest.mark.parametrize("key", ["../a.npy", "/etc/a.npy", "x/../../a.npy", "C:a.npy", "..\\a.npy"])
def test_keys_that_leave_the_folder_are_refused(tmp_path, key):
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    (tmp_path / "inner").mkdir()

    with pytest.raises(ValueError, match="leads out of its folder"):
        dataset.load_spectrogram(tmp_path / "inner", key)
    with pytest.raises(ValueError, match="leads out of its folder"):
        preprocess.Saver(tmp_path / "inner", tmp_path).save_feature(np.zeros((2, 2)), key)
    assert [*(tmp_path / "inner").iterdir()] == []


def test_no_feature_is_written_or_deleted_through_a_link(tmp_path, write_audio, make_settings):
    write_audio("g/a.wav", make_music(0.4))
    preprocess.run(tmp_path / "audio", tmp_path / "saved", make_settings(), jobs=1)
    outside = tmp_path / "outside"
    (tmp_path / "saved" / "spectrograms" / "g").rename(outside)
    (outside / "mine.npy").write_text("mine")
    (tmp_path / "saved" / "spectrograms" / "g").symlink_to(outside)
    write_audio("g/a.wav", make_tone(duration=0.4))
    before = {path.name: path.read_bytes() for path in outside.iterdir()}

    with pytest.raises(ValueError, match="is a link to elsewhere"):
        preprocess.run(tmp_path / "audio", tmp_path / "saved", make_settings(), jobs=1)

    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before


@pytest.mark.parametrize(
    "reader",
    [
        dataset.load_settings, dataset.load_min_max_values, load_split,
        files.read_json, lambda path: dataset.load_spectrogram(path.parent, path.name),
    ],
)  # fmt: skip
def test_readers_do_not_wait_for_a_pipe(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(ValueError, match="is no"):
        reader(tmp_path / "pipe")


@pytest.mark.parametrize("reader", [dataset.load_min_max_values, load_split])
def test_files_of_absurd_size_are_refused_unread(tmp_path, reader):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(1 << 40)

    with pytest.raises(ValueError, match="must have at most"):
        reader(tmp_path / "a")


@pytest.mark.parametrize(
    "fields",
    [
        {"sample_rate": "22050"}, {"sample_rate": 0}, {"sample_rate": 1e9}, {"frame_size": 1 << 40},
        {"frame_size": 255}, {"hop_length": 0}, {"hop_length": 200}, {"duration": -1},
        {"duration": float("nan")}, {"duration": 1e9}, {"mono": 1}, {"segments": "../x"},
        {"top_db": None}, {"format_version": 2}, {"unknown": 1}, {"duration": True},
        {"duration": 3600, "hop_length": 1}, {"sample_rate": [[]]},
    ],
)  # fmt: skip
def test_hostile_settings_are_refused(tmp_path, make_settings, fields):
    path = tmp_path / "settings.json"
    files.write_json(path, {**make_settings()._asdict(), **fields})

    with pytest.raises(ValueError, match=r"settings\.json is no settings file of this version"):
        dataset.load_settings(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "9" * 5000, '{"a": NaN}', "\0"])
def test_json_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)

    with pytest.raises(ValueError, match=r"settings\.json is no settings file"):
        dataset.load_settings(tmp_path / "settings.json")


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
    parameters = files.read_json(model / "parameters.json")
    files.write_json(tmp_path / "parameters.json", {**parameters, **fields})
    return tmp_path


@pytest.mark.parametrize(
    "fields",
    [
        {"input_shape": [1 << 20, 1 << 20, 1]}, {"conv_filters": [1 << 40]},
        {"latent_space_dim": 10**12}, {"conv_kernels": [1 << 30]}, {"conv_filters": [4] * 1000},
        {"latent_space_dim": "3"}, {"input_shape": None}, {"input_shape": [16, 12]},
        {"conv_strides": [[2, 2, 2]]}, {"conv_strides": [0]}, {"conv_filters": []},
        {"conv_kernels": [[]]}, {"latent_space_dim": float("inf")}, {"latent_space_dim": 1e400},
        {"unknown": 1}, {"conv_filters": [[[[4]]]]}, {"input_shape": {"a": 1}},
        {"input_shape": [-16, -12, 1]}, {"latent_space_dim": [3]},
    ],
)  # fmt: skip
def test_a_hostile_model_is_refused_before_it_is_built(model, tmp_path, fields, monkeypatch):
    from autoencoder import Autoencoder

    def refuse(autoencoder):
        raise AssertionError("it was built")

    if "unknown" not in fields:
        monkeypatch.setattr(Autoencoder, "_build", refuse)
    with pytest.raises(ValueError, match=r"parameters\.json is no set of parameters"):
        Autoencoder.load(copy_model(model, tmp_path, **fields))


@pytest.mark.parametrize("fields", [{"conv_filters": [3]}, {"latent_space_dim": 2}])
def test_weights_of_another_shape_get_one_clear_line(model, tmp_path, fields):
    copy_model(model, tmp_path, **fields)
    files.write_json(tmp_path / "settings.json", dataset.Settings(
        1, SAMPLE_RATE, 32, 8, 0.1, True, "all", 80.0)._asdict())  # fmt: skip

    done = subprocess.run(
        [sys.executable, str(ROOT / "generate.py"), "--model", str(tmp_path), "--sample", "1"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "model.weights.h5 does not fit the parameters beside it" in done.stderr


def test_weights_that_refer_to_other_files_are_refused(model, tmp_path):
    import h5py

    from autoencoder import Autoencoder

    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["numbers"] = np.zeros(4)

    def link(file):
        file["elsewhere"] = h5py.ExternalLink("secret.h5", "/numbers")

    def soften(file):
        file["elsewhere"] = h5py.SoftLink("/layers")

    def virtualise(file):
        layout = h5py.VirtualLayout(4, "f8")
        layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "numbers", 4)
        file.create_virtual_dataset("elsewhere", layout)

    def read_outside(file):
        file.create_dataset("elsewhere", 4, "f8", external=[("/etc/passwd", 0, 32)])

    def bomb(file):
        file.create_dataset("elsewhere", (1 << 34,), "f4", chunks=(1 << 20,), compression="gzip")

    for attack in (link, soften, virtualise, read_outside, bomb):
        folder = tmp_path / attack.__name__
        folder.mkdir()
        copy_model(model, folder)
        with h5py.File(folder / "model.weights.h5", "a") as file:
            attack(file)
        with pytest.raises(ValueError, match="does not fit"):
            Autoencoder.load(folder)


def test_a_compressed_or_pickled_archive_is_refused(tmp_path):
    path = tmp_path / "latents.npz"
    np.savez_compressed(path, latent=np.zeros((1 << 20, 8)))
    with pytest.raises(ValueError, match="compressed"):
        arrays.load_arrays(path)

    np.savez(path, latent=np.array([{}], object))
    with pytest.raises(ValueError, match="is damaged"):
        arrays.load_arrays(path)

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("latent.npy", make_npy(format_header("(99999999, 99999999)"), bytes(64)))
    with pytest.raises(ValueError, match="is damaged"):
        arrays.load_arrays(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"latent": np.zeros((3, 2))}, {"latent": np.full((2, 2), np.nan)}, {"min": np.zeros(3)},
        {"key": np.array(["../../a.npy", "b.npy"])}, {"key": np.array([1, 2])},
        {"genre": np.zeros(2)}, {"max": np.array(["a", "b"])}, {"max": np.full(2, np.inf)},
    ],
)  # fmt: skip
def test_hostile_latents_are_refused(tmp_path, changes):
    good = {
        "latent": np.zeros((2, 2), np.float32), "min": np.zeros(2), "max": np.ones(2),
        "key": np.array(["a.npy", "b.npy"]), "genre": np.array(["", ""]),
    }  # fmt: skip
    np.savez(tmp_path / "latents.npz", **good)
    assert load_training_pieces(tmp_path).keys == ["a.npy", "b.npy"]

    np.savez(tmp_path / "latents.npz", **{**good, **changes})
    with pytest.raises(ValueError, match=r"latents\.npz is damaged"):
        load_training_pieces(tmp_path)


def make_item(name):
    sound = np.zeros(100, np.float32)
    return Item(name, f"{name} <script>alert(1)</script>", {"new": sound}, {}, {
        "nearest training piece": "<img src=x onerror=alert(1)>"})  # fmt: skip


class Tags(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@pytest.mark.parametrize("name", NAMES + ("../../up.wav", '"><script>alert(1)</script>', "a:b.wav"))
def test_a_name_injects_nothing_into_the_page_or_a_path(tmp_path, name):
    settings = dataset.Settings(1, SAMPLE_RATE, 256, 64, 0.3, True, "all", 80.0)
    wav_name = make_wav_names([f"{name}.000.npy"])[0]

    entry = generate.write_item(tmp_path, make_item(wav_name.removesuffix(".wav")), settings)
    write_page(tmp_path, [{**entry, "title": name}], {})

    tags = Tags((tmp_path / "index.html").read_text()).found
    plain = Tags((ROOT / "generation" / "page.html").read_text()).found
    count = [sum(tag == "script" for tag, _ in found) for found in (tags, plain)]
    assert count[0] == count[1] == 1
    assert not any(key.startswith("on") for _, attributes in tags for key in attributes)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.parent.name for path in written) == ["new", tmp_path.name]
    assert all(tmp_path in path.resolve().parents for path in written)
    assert all(c.isprintable() and c not in '/\\:*?"<>|' for c in wav_name)


def test_a_name_injects_no_formula_into_a_table(tmp_path):
    names = ["=1+1.wav", "+1.wav", "-1.wav", "@a.wav", "\ta.wav", "\ra.wav", "a,b\n\"c'.wav"]

    files.write_csv(tmp_path / "a.csv", ("path", "number"), [(name, -1.5) for name in names])

    with open(tmp_path / "a.csv", newline="") as file:
        rows = [*csv.reader(file)]
    assert [path for path, _ in rows[1:]] == [*(f"'{name}" for name in names[:-1]), names[-1]]
    assert {number for _, number in rows[1:]} == {"-1.5"}


def test_a_name_obeys_nothing_on_the_terminal(tmp_path, write_audio):
    write_audio("bad\x1b[31m\n\x07name.wav", make_tone(duration=0.001))
    write_audio("good.wav", make_tone())

    done = subprocess.run(
        [sys.executable, str(ROOT / "preprocess.py"), "--audio_files_dir", "audio"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0 and len(done.stderr.splitlines()) == 1
    assert done.stderr.strip().isprintable()


@pytest.mark.parametrize(
    "split",
    [
        [], {}, {"train": "a.wav"}, {"train": [1]}, {"test": []}, {"train": ["a"], "other": []},
        {"train": ["a.wav"], "test": ["a.wav"]}, {"train": None}, {"train": "x"},
        {"train": [], "test": {"x": 1}},
    ],
)  # fmt: skip
def test_a_split_that_is_none_is_refused(tmp_path, split):
    files.write_json(tmp_path / "split.json", split)

    with pytest.raises(ValueError, match=r"split\.json must be a split"):
        load_split(tmp_path / "split.json")
