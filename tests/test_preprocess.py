import json
import os
import subprocess
import sys
import time

import librosa
import numpy as np
import pytest
import soundfile

import preprocess
from generation.sources import Recordings
from helpers import (
    ROOT,
    SAMPLE_RATE,
    load_ranges,
    make_music,
    make_settings,
    make_tone,
    measure_pitch,
    read_all,
    read_csv,
)
from support import audio as audio_files
from support import dataset
from support.errors import UserError
from support.settings import count_samples
from support.spectrograms import resize


def process(tmp_path, settings, **keywords):
    """Preprocess tmp_path/audio into tmp_path/saved; the min-max values that were written."""
    audio, saved = tmp_path / "audio", tmp_path / "saved"
    preprocess.preprocess_folder(audio, saved, settings, jobs=1, **keywords)
    return load_ranges(saved)


def test_loader_doubles_mono_in_a_stereo_run(write_audio):
    path = write_audio("a.wav", make_tone(), subtype="FLOAT")

    signal = preprocess.Loader(SAMPLE_RATE, 0.5, mono=False).load(path)

    assert signal.shape == (2, SAMPLE_RATE // 2)
    np.testing.assert_array_equal(signal[0], signal[1])


@pytest.mark.parametrize("native_rate", [8000, 44100, 48000])
def test_loader_resamples_to_the_exact_length_and_pitch(write_audio, native_rate):
    path = write_audio("a.wav", make_tone(440, 1.0, native_rate), native_rate)

    signal = preprocess.Loader(SAMPLE_RATE, 0.75, mono=True).load(path)

    assert len(signal) == int(0.75 * SAMPLE_RATE)
    assert abs(measure_pitch(signal) - 440) < 0.5


def test_loader_leaves_out_what_the_lower_rate_cannot_hold(write_audio):
    path = write_audio("high.wav", make_tone(15000, 1.0, 44100), 44100)

    signal = preprocess.Loader(SAMPLE_RATE, 1.0, mono=True).load(path)

    assert np.abs(signal[1000:-1000]).max() < 5e-5  # else it would be heard at 7050 Hz


def test_pieces_follow_each_other_where_blocks_end_with_them(write_audio):
    signal = np.random.default_rng(0).uniform(-0.5, 0.5, 5 << 16)
    path = write_audio("a.wav", signal)
    loader = preprocess.Loader(SAMPLE_RATE, (1 << 16) / SAMPLE_RATE, mono=True)

    pieces = [*loader.load_pieces(path)]  # of 2**16 samples, decoded in blocks of 2**18

    np.testing.assert_array_equal(np.concatenate(pieces), loader.load_whole(path))


@pytest.mark.parametrize(
    "n_samples, lengths",
    [
        (26460, [11025, 11025]),  # 40 % of a piece are left out
        (17640, [11025, 6615]),
        (22050, [11025, 11025]),
        (16538, [11025, 5513]),  # just half of one
    ],
)
def test_loader_keeps_a_last_piece_of_half_or_more(write_audio, n_samples, lengths):
    path = write_audio("a.wav", make_tone(duration=1.2)[:n_samples])
    loader = preprocess.Loader(SAMPLE_RATE, 0.5, mono=True)

    assert [len(piece) for piece in loader.load_pieces(path)] == lengths
    assert count_samples(100, 0.29) == 29  # in floating point 28.999999999999996


def test_padder_pads_the_last_axis_alone():
    padder = preprocess.Padder("constant")

    np.testing.assert_array_equal(padder.right_pad(np.ones((2, 3)), 2), [[1, 1, 1, 0, 0]] * 2)


@pytest.mark.parametrize("n_samples", [65488, 65280, 999])
def test_extractor_agrees_with_librosa(n_samples):
    signal = make_music()[:n_samples]
    extractor = preprocess.LogSpectrogramExtractor(512, 256)

    log_spectrogram = extractor.extract(signal)

    stft = librosa.stft(signal, n_fft=512, hop_length=256)[:-1]
    oracle = librosa.amplitude_to_db(np.abs(stft), ref=1.0, top_db=80)
    assert log_spectrogram.shape == (256, 1 + n_samples // 256)
    np.testing.assert_allclose(log_spectrogram, oracle, atol=0.01)  # float32, 80 dB down


def test_normaliser_round_trip():
    array = np.random.default_rng(0).normal(-30, 10, (8, 9)).astype(np.float32)
    normaliser = preprocess.MinMaxNormaliser(-1, 1)

    normalised = normaliser.normalise(array)
    again = normaliser.denormalise(normalised, array.min(), array.max())

    assert normalised.min() == -1 and normalised.max() == 1
    assert (normaliser.normalise(np.full((3, 3), -100.0)) == -1).all()  # silence
    np.testing.assert_allclose(again, array, atol=1e-4)  # float32 at 60 dB


def test_resize_round_trip_keeps_a_smooth_image():
    rows, columns = np.mgrid[0:64, 0:48]
    image = (0.5 + 0.4 * np.sin(rows / 9) * np.cos(columns / 8)).astype(np.float32)[..., None]

    small = resize(image, (32, 24))
    again = resize(small, (64, 48))

    assert small.shape == (32, 24, 1)
    np.testing.assert_allclose(again, image, atol=0.01)  # a cubic's error at this curvature


def test_resize_makes_a_loud_first_frame_hardly_louder():
    image = np.full((8, 8, 1), 0.1, np.float32)
    image[:, 0] = 0.5

    first = resize(image, (8, 16))[:, :2]

    assert first.max() < 0.62  # 0.58, where a spline that is not natural gives 0.66
    np.testing.assert_allclose(first.mean(axis=1), 0.5, atol=1e-6)  # float32


def test_pipeline_writes_features_settings_and_plain_min_max(tmp_path, write_audio):
    write_audio("deep/er/ünï côde 1.wav", make_music(0.7))

    min_max_values = process(tmp_path, make_settings())

    keys = dataset.list_keys(tmp_path / "saved" / "spectrograms")
    spectrogram = np.load(tmp_path / "saved" / "spectrograms" / keys[0])
    assert keys == [f"deep/er/ünï côde 1.wav.{i:03d}.npy" for i in range(2)] == [*min_max_values]
    assert spectrogram.dtype == np.float16 and spectrogram.shape == (128, 104)
    assert spectrogram.min() == 0 and spectrogram.max() == 1
    assert {type(v) for entry in min_max_values.values() for v in entry.values()} == {float}
    assert b"numpy" not in dataset.Features.of(tmp_path / "saved").min_max_path.read_bytes()


def test_keys_are_in_the_order_of_the_segments(tmp_path):
    names = ["a.wav.999.npy", "a.wav.1000.npy", "b.wav.000.npy", ".hidden.000.npy", "mine.npy"]
    for name in names:
        np.save(tmp_path / name, np.zeros((2, 2)))

    assert dataset.list_keys(tmp_path) == names[:3]


def test_pipeline_keeps_silence_finite(tmp_path, write_audio):
    write_audio("a.wav", np.zeros(8000))

    min_max_values = process(tmp_path, make_settings())

    (key,) = min_max_values
    assert min_max_values[key] == pytest.approx({"min": -100.0, "max": -100.0})
    assert not dataset.load_spectrogram(tmp_path / "saved" / "spectrograms", key).any()


BAD_FILES = {
    "empty": "is empty",
    "fifo": "is not a regular file",
    "header": "not readable as audio",
    "link": "cannot be opened",
    "nan": "not finite",
    "no_samples": "no samples",
    "sample": "shorter than one frame",
    "text": "not readable as audio",
}


def test_pipeline_skips_bad_files_and_says_why(tmp_path, write_audio):
    signals = {"nan": np.full(8000, np.nan), "sample": np.ones(1), "no_samples": np.ones(0)}
    for name in BAD_FILES:
        path = write_audio(f"{name}.wav", signals.get(name, make_tone()), subtype="FLOAT")
    folder = path.parent
    (folder / "text.wav").write_text("no audio at all\n" * 100)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "header.wav").write_bytes(b"\0" * 64 + (folder / "header.wav").read_bytes()[64:])
    for name in ("link", "fifo"):
        (folder / f"{name}.wav").unlink()
    (folder / "link.wav").symlink_to("nowhere.wav")
    os.mkfifo(folder / "fifo.wav")

    with pytest.raises(UserError, match="no audio file was kept"):
        process(tmp_path, make_settings())
    write_audio("good.wav", make_tone())

    assert {dataset.get_track(key) for key in process(tmp_path, make_settings())} == {"good.wav"}
    skipped = {row["path"]: row["reason"] for row in read_csv(tmp_path / "saved" / "skipped.csv")}
    assert [*skipped] == [f"{name}.wav" for name in BAD_FILES]
    for name, reason in BAD_FILES.items():
        assert reason in skipped[f"{name}.wav"]


def test_a_link_to_what_does_not_answer_costs_only_itself(tmp_path, write_audio, monkeypatch):
    (write_audio("a.wav", make_tone()).parent / "hangs.wav").symlink_to("a.wav")
    stat = os.stat

    def hang(path, **keywords):
        time.sleep(0.5 if str(path).endswith("hangs.wav") else 0)
        return stat(path, **keywords)

    monkeypatch.setattr(audio_files, "LINK_S", 0.05)
    monkeypatch.setattr(os, "stat", hang)

    stamps, refused = audio_files.list_audio_files(tmp_path / "audio")

    assert [*stamps] == ["a.wav"]
    assert refused == {"hangs.wav": "cannot be opened (Connection timed out)"}


def test_another_folder_needs_force(tmp_path, write_audio):
    write_audio("a.wav", make_tone())
    process(tmp_path, make_settings())
    before = read_all(tmp_path / "saved")
    assert json.loads(before["source.json"]) == {"audio_files_dir": "../audio"}

    other, saved, settings = tmp_path / "other", tmp_path / "saved", make_settings()
    other.mkdir()
    (other / ".DS_Store").touch()  # as where a disk is not mounted
    for _ in range(2):
        with pytest.raises(UserError, match=r"none of the 1 tracks .*other \(first: a\.wav\)"):
            preprocess.preprocess_folder(other, saved, settings, jobs=1)
        assert read_all(saved) == before
        write_audio("../other/b.wav", make_tone())
    preprocess.preprocess_folder(other, saved, settings, jobs=1, force=True)
    assert [*load_ranges(saved)] == ["b.wav.000.npy", "b.wav.001.npy", "b.wav.002.npy"]


def test_other_settings_need_force(tmp_path, write_audio):
    write_audio("a.wav", make_tone())
    process(tmp_path, make_settings())

    with pytest.raises(UserError, match="other settings"):
        process(tmp_path, make_settings(duration=0.5))
    assert len(process(tmp_path, make_settings(duration=0.5), force=True)) == 2


def test_links_to_several_folders_make_one_set_and_their_names_are_genres(tmp_path, write_audio):
    folders = [write_audio("rock/deep/a.wav", make_music(0.5)).parents[1]]
    folders.append(write_audio("far/jazz/a.wav", make_tone()).parent)
    (tmp_path / "links").mkdir()
    for folder in folders:
        (tmp_path / "links" / folder.name).symlink_to(folder)

    preprocess.preprocess_folder(tmp_path / "links", tmp_path / "saved", make_settings(), jobs=1)

    features = dataset.Features.of(tmp_path / "saved")
    assert {*map(dataset.get_track, features.keys)} == {"jazz/a.wav", "rock/deep/a.wav"}
    assert {*map(dataset.get_genre, features.keys)} == {"jazz", "rock"}
    recordings = Recordings(features)
    for key in features.keys:
        assert recordings.load(key, dataset.load_spectrogram(features.path, key)) is not None


def test_a_folder_of_others_is_left_alone(tmp_path, write_audio):
    write_audio("a.wav", make_tone())
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "thesis.txt").write_text("mine")

    with pytest.raises(UserError, match="not written here"):
        process(tmp_path, make_settings(), force=True)
    assert (tmp_path / "saved" / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path, write_audio):
    for index in range(4):
        write_audio(f"{index}.wav", make_music(0.7, seed=index))
    audio, settings = tmp_path / "audio", make_settings()

    preprocess.preprocess_folder(audio, tmp_path / "one", settings, jobs=1)
    preprocess.preprocess_folder(audio, tmp_path / "two", settings, jobs=2)

    written = read_all(tmp_path / "one")
    assert len(written) == 13
    assert written == read_all(tmp_path / "two")


def test_import_leaves_tensorflow_out():
    code = "import sys, preprocess, generate, train; print('tensorflow' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--frame_size 1023", "frame_size"),
        ("--hop_length 5000", "hop_length"),
        ("--duration 0.03", "duration"),
        ("--sample_rate x", "sample_rate"),
        ("--jobs 2 --dask_scheduler tcp://127.0.0.1:1", "not allowed with argument"),
        ("--dur 1", "unrecognized arguments: --dur"),
    ],
)
def test_flags_that_are_out_of_range_or_would_be_guessed_are_usage_errors(capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        preprocess.main(flags.split())

    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_shortest_duration_that_an_error_names_is_allowed():
    with pytest.raises(UserError, match=r"duration must be at least 0\.047 s .*, got 0\.03$"):
        make_settings(frame_size=1024, duration=0.03)

    assert make_settings(frame_size=1024, duration=0.047).n_samples >= 1024


def test_the_frames_of_pieces_are_those_of_their_whole_track(tmp_path):
    soundfile.write(tmp_path / "x.wav", make_music(2.0), SAMPLE_RATE, "FLOAT")
    settings = make_settings(duration=0.5, hop_length=105)  # which divides a piece
    pipeline = preprocess.make_pipeline(settings)

    signals = [*pipeline.load_extended(tmp_path / "x.wav")]

    frames = [pipeline.extractor.extract(signal, is_extended=True) for signal in signals]
    n_frames = settings.n_samples // 105  # the last frame of each piece is the next one's first
    joined = np.concatenate([frame[:, :n_frames] for frame in frames], axis=1)
    music = pipeline.loader.load_whole(tmp_path / "x.wav")
    whole = preprocess.LogSpectrogramExtractor(256, 105, top_db=None).extract(music)
    whole = whole[:, : joined.shape[1]]
    loud = whole > -40  # above the floor of every piece
    np.testing.assert_allclose(joined[loud], whole[loud], atol=0.01)


def test_how_much_is_silence_is_said_if_it_is_most(tmp_path, write_audio, capsys):
    for index in range(2):
        write_audio(f"{index}.wav", make_tone(duration=0.1))

    for duration, is_said in ((0.3, True), (0.15, False)):
        folders = tmp_path / "audio", tmp_path / f"saved {duration}"
        preprocess.preprocess_folder(*folders, make_settings(duration=duration))

        assert ("67% of what is learned is silence" in capsys.readouterr().err) == is_said
