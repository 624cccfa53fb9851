"""What is read of audio files of many formats, whole, cut, joined and damaged."""

import shutil
import struct
import zipfile

import av
import numpy as np
import pytest
import scipy.signal
import soundfile

import preprocess
from helpers import (
    SAMPLE_RATE,
    make_music,
    make_settings,
    make_tone,
    measure_pitch,
    write_with_ffmpeg,
)
from support import audio, dataset, readers
from support.errors import UserError

TOLERANCE_S = 0.1  # seconds by which a length may differ: codecs add up to two of their frames
ROUNDING = 2e-5  # of full scale, by which float32 may differ from float64 after the high-pass
WANDER_LEFT = 0.06  # of what is slower than 0.5 Hz: one pole at 10 Hz leaves a twentieth


def write_mp3(path, duration=3.0, **options):
    """Write noise, for which a variable bit rate varies, as MP3; the path."""
    envelope = np.linspace(0.001, 0.5, int(duration * 44100))
    signal = envelope * np.random.default_rng(0).standard_normal(len(envelope))
    return write_with_ffmpeg(path, signal[None].astype(np.float32), "libmp3lame", **options)


def read(path, mono=True, duration=0.5):
    """The samples of a file at SAMPLE_RATE, and the remarks on it."""
    remarks = []
    signal = preprocess.Loader(SAMPLE_RATE, duration, mono).load_whole(path, remarks)
    return signal, remarks


def measure_levels(signal, frequencies):
    """Amplitudes of sines that have whole periods in a second, in the first second of a signal."""
    spectrum = np.abs(np.fft.rfft(signal[..., :SAMPLE_RATE])) / SAMPLE_RATE * 2
    return spectrum[..., frequencies]


def high_pass(signal):
    """A signal at SAMPLE_RATE without what is slower than 10 Hz, in one go, float64."""
    b, a = scipy.signal.butter(1, 10, "highpass", fs=SAMPLE_RATE)
    state = scipy.signal.lfilter_zi(b, a) * signal[..., :1]
    return scipy.signal.lfilter(b, a, signal, zi=state)[0]


@pytest.mark.parametrize(
    "name, codec",
    [
        ("a.m4a", "aac"),
        ("a.aac", "aac"),
        ("a.m4a", "alac"),
        ("a.wma", "wmav2"),
        ("a.webm", "libopus"),
        ("a.wv", "wavpack"),
        ("a.adx", "adpcm_adx"),
        ("a.nut", "mp2"),
        ("a.rm", "ac3"),
        ("a.sox", "pcm_s32le"),
        ("a.mp3", "libmp3lame"),
    ],
)
def test_sounds_of_many_formats_have_their_length_pitch_and_level(tmp_path, name, codec):
    signal = make_tone(440, 1.0, 48000)
    path = write_with_ffmpeg(tmp_path / name, signal[None], codec, sample_rate=48000)

    signal, remarks = read(path)

    assert len(signal) / SAMPLE_RATE == pytest.approx(1.0, abs=TOLERANCE_S)
    assert measure_pitch(signal) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(signal**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)  # lossy
    assert not remarks


def test_the_first_sound_of_a_video_is_read(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width = video.height = 32
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        packets = [*video.encode(picture), *video.encode(None)]
        for frequency in (440, 880):
            sound = container.add_stream("aac", rate=44100, layout="mono")
            tone = make_tone(frequency, 1.0, 44100)[None]
            frame = av.AudioFrame.from_ndarray(tone, "fltp", "mono")
            frame.sample_rate = 44100
            packets += [*sound.encode(frame), *sound.encode(None)]
        container.mux(packets)

    signal, _ = read(tmp_path / "a.mp4")

    assert measure_pitch(signal) == pytest.approx(440, abs=2)


def test_what_ffmpeg_refuses_is_read_by_libsndfile(tmp_path, write_audio, monkeypatch):
    path = write_audio("a.ogg", make_tone(440, 1.0))
    monkeypatch.setattr(readers, "FFMPEG_FORMATS", "mp3")

    signal, _ = read(path)
    assert measure_pitch(signal) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(signal**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)  # lossy
    with pytest.raises(UserError, match="not readable as audio"):
        read(write_with_ffmpeg(tmp_path / "a.m4a", make_tone()[None], "aac"))


@pytest.mark.parametrize("kind", ["nist", "ircam", "paf", "pvf", "mat4"])
def test_what_libsndfile_alone_knows_is_read_from_its_beginning(write_audio, kind):
    tone = high_pass(make_tone(440, 0.5))
    path = write_audio(f"a.{kind}", tone, format=kind.upper(), subtype="PCM_16")

    signal, remarks = read(path)

    assert len(signal) == len(tone) and not remarks
    np.testing.assert_allclose(signal[4096:], high_pass(tone)[4096:], atol=2e-3)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_of_songs_is_refused(tmp_path, kind):
    (tmp_path / "songs").mkdir()
    write_mp3(tmp_path / "songs" / "a.mp3")
    path = shutil.make_archive(tmp_path / "album", kind, tmp_path / "songs")
    if kind == "zip":  # without compression, as shops send it
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "songs" / "a.mp3")

    with pytest.raises(UserError, match="is an archive: unpack it"):
        read(path)


@pytest.mark.parametrize("begins, is_asked", [(b"\xfe\x7f\x01\x80", True), (b"", False)])
def test_ffmpeg_is_asked_what_a_wav_with_a_word_of_dts_is(tmp_path, monkeypatch, begins, is_asked):
    def read_with_ffmpeg(*_):
        asked.append(True)
        yield 44100, np.zeros((9, 1), np.float32)

    asked, samples = [], np.frombuffer(begins * 9 + bytes(400), np.int16)
    soundfile.write(tmp_path / "a.wav", samples.reshape(-1, 2), 44100)
    monkeypatch.setattr(readers, "read_with_ffmpeg", read_with_ffmpeg)

    read(tmp_path / "a.wav")

    assert bool(asked) == is_asked  # the wheels of PyAV have no encoder to test the rest with


@pytest.mark.parametrize(
    "told, before, behind",
    [
        (1.0, b"", b""),
        (1.0, b"LIST\5\0\0\0abcde\0", b""),  # a byte fills up what is odd
        (3.0, b"", struct.pack("<4sI20000x", b"LIST", 20000)),
        (3.0, b"", bytes(1000)),
    ],
)
def test_a_wav_is_read_to_the_end_of_its_sound_whatever_its_header_tells(
    tmp_path, told, before, behind
):
    path = tmp_path / "a.wav"
    soundfile.write(path, make_tone(440, 3.0), SAMPLE_RATE)
    data = bytearray(path.read_bytes() + behind)
    data[40:44] = struct.pack("<I", round(told * SAMPLE_RATE) * 2)
    data[36:36] = before
    path.write_bytes(data)

    assert len(read(path)[0]) / SAMPLE_RATE == pytest.approx(3.0, abs=0.001)


@pytest.mark.parametrize(
    "name, codec, form, message",
    [
        ("a.jpg", "mjpeg", "yuvj420p", "not readable as audio"),
        ("a.mp4", "mpeg4", "yuv420p", "no audio"),
    ],
)
def test_a_picture_and_a_video_without_sound_are_refused(tmp_path, name, codec, form, message):
    container_format = "image2" if name == "a.jpg" else None
    with av.open(str(tmp_path / name), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=1)
        stream.width = stream.height = 32
        stream.pix_fmt = form
        picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        container.mux([*stream.encode(picture), *stream.encode(None)])

    with pytest.raises(UserError, match=message):
        read(tmp_path / name)


def test_a_playlist_opens_no_other_file(tmp_path):
    soundfile.write(tmp_path / "secret.wav", make_tone(), SAMPLE_RATE)
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n")

    with pytest.raises(UserError, match="not readable as audio"):
        read(tmp_path / "a.m3u8")


def test_an_unknown_codec_is_refused(tmp_path):
    signal = make_tone(440, 0.5, 48000)
    path = write_with_ffmpeg(tmp_path / "a.mkv", signal[None], "libopus", sample_rate=48000)
    path.write_bytes(path.read_bytes().replace(b"A_OPUS", b"A_XXXX"))

    with pytest.raises(UserError, match="holds no audio that can be decoded"):
        read(path)


def test_an_mp3_has_its_length_with_and_without_headers_joined_and_cut(tmp_path):
    whole = write_mp3(tmp_path / "a.mp3").read_bytes()
    bare = write_mp3(tmp_path / "b.mp3", write_xing="0").read_bytes()
    start = 10 + int.from_bytes(whole[8:10]) % 128 + 128 * whole[8]  # of the audio, behind ID3
    for data, seconds in (
        (whole, 3.0),
        (bare, 3.0),
        (bare[1000:], 3.0),  # begins in the middle of a frame
        (whole[:start] + bytes(3000) + whole[start:], 3.0),
        (whole + whole, 6.0),
        (whole[: len(whole) // 2], 1.5),
    ):
        (tmp_path / "c.mp3").write_bytes(data)

        signal, remarks = read(tmp_path / "c.mp3")

        assert len(signal) / SAMPLE_RATE == pytest.approx(seconds, abs=2 * TOLERANCE_S)
        assert not remarks
    (tmp_path / "c.mp3").write_bytes(whole[:300])
    with pytest.raises(UserError, match="holds no samples|not readable"):
        read(tmp_path / "c.mp3")


def test_joined_mp3s_of_other_rates_and_channels_are_read_to_the_end(tmp_path):
    stereo = np.stack([make_tone(440, 1.0, 32000)] * 2)
    first = write_mp3(tmp_path / "a.mp3", 1.0)
    second = write_with_ffmpeg(tmp_path / "b.mp3", stereo, "libmp3lame", "stereo", 32000)
    (tmp_path / "joined.mp3").write_bytes(first.read_bytes() + second.read_bytes())

    signal, _ = read(tmp_path / "joined.mp3")

    assert len(signal) / SAMPLE_RATE == pytest.approx(2.0, abs=2 * TOLERANCE_S)
    assert measure_pitch(signal[-SAMPLE_RATE // 2 :]) == pytest.approx(440, abs=2)


def test_a_flac_that_does_not_know_its_length_is_read(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, make_tone(), SAMPLE_RATE)
    data = bytearray(path.read_bytes())
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # 36 bits of STREAMINFO: samples, 0 unknown
    path.write_bytes(data)

    signal, remarks = read(path)

    np.testing.assert_allclose(signal, high_pass(make_tone()), atol=1e-4)  # 16 bits
    assert not remarks


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.rf64", "a.flac"])
def test_a_cut_file_is_used_and_the_shortage_of_a_wav_is_said(tmp_path, name):
    noise = 0.1 * np.random.default_rng(0).standard_normal(4 * SAMPLE_RATE)
    soundfile.write(tmp_path / name, noise, SAMPLE_RATE, format=name[2:])

    signal, remarks = read(cut(tmp_path / name, 0.5))

    assert len(signal) / SAMPLE_RATE == pytest.approx(2.0, abs=0.25)  # a block of FLAC
    np.testing.assert_allclose(signal[:40000], high_pass(noise)[:40000], atol=1e-4)  # 16 bits
    shortage = f"{4 - len(signal) / SAMPLE_RATE:.1f}"
    said = [f"ends {shortage} s before the length that its header gives"]
    assert remarks == (said if name == "a.wav" else [])


def test_a_few_missing_samples_are_used_without_a_word(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, make_tone(), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[:-3000])  # 1500 samples

    signal, remarks = read(path)

    assert len(signal) == SAMPLE_RATE - 1500
    assert not remarks


def test_damaged_packets_are_left_out_and_said(tmp_path):
    signal = make_music(4.0)
    path = write_with_ffmpeg(tmp_path / "a.m4a", signal[None], "aac", sample_rate=SAMPLE_RATE)
    data = bytearray(path.read_bytes())
    place = data.index(b"mdat") + 4
    middle = slice(place + (len(data) - place) // 3, place + (len(data) - place) // 2)
    data[middle] = np.random.default_rng(0).bytes(middle.stop - middle.start)
    path.write_bytes(data)

    signal, remarks = read(path)

    assert len(signal) > 2 * SAMPLE_RATE
    assert len(remarks) == 1 and remarks[0].endswith("s that are damaged")


def test_reading_prints_nothing(tmp_path, capfd):
    data = bytearray(write_mp3(tmp_path / "a.mp3").read_bytes())
    data[5000:9000] = np.random.default_rng(0).bytes(4000)
    (tmp_path / "a.mp3").write_bytes(data)

    read(tmp_path / "a.mp3")

    assert capfd.readouterr() == ("", "")


SPEAKERS = {  # channels in the order of a file, by what they are in left and right
    5: "L R C l r",
    6: "L R C - l r",
    7: "L R C - c l r",
    8: "L R C - l r l r",
}
LEVELS = {"L": (1, 0), "R": (0, 1), "l": (0.707, 0), "r": (0, 0.707), "-": (0, 0)}
LEVELS |= {"C": (0.707, 0.707), "c": (0.5, 0.5)}


@pytest.mark.parametrize("n_channels", [*SPEAKERS, 4, 16])
def test_surround_is_mixed_down_to_stereo_and_mono(tmp_path, n_channels):
    frequencies = [200 * (index + 1) for index in range(n_channels)]
    signal = np.stack([make_tone(f, 1.0, level=1.0) for f in frequencies], axis=1)
    soundfile.write(tmp_path / "a.wav", signal, SAMPLE_RATE, subtype="FLOAT")

    stereo, mono = (read(tmp_path / "a.wav", mono=mono)[0] for mono in (False, True))

    gains = np.tile(np.eye(2), n_channels // 2)  # without places: left and right by turns
    if n_channels in SPEAKERS:
        gains = np.array([LEVELS[name] for name in SPEAKERS[n_channels].split()]).T
    gains /= gains.sum(axis=1, keepdims=True)  # what is at full scale does not clip
    np.testing.assert_allclose(measure_levels(stereo, frequencies), gains, atol=1e-3)
    np.testing.assert_allclose(measure_levels(mono, frequencies), gains.mean(axis=0), atol=1e-3)


def test_surround_does_not_clip(tmp_path):
    signal = np.ones((SAMPLE_RATE, 6)) * make_tone(440, level=1.0)[:, None]
    soundfile.write(tmp_path / "a.wav", signal, SAMPLE_RATE, subtype="FLOAT")

    signal, _ = read(tmp_path / "a.wav", mono=False)

    settled = signal[:, SAMPLE_RATE // 2 :]  # the high-pass moves the first periods
    assert np.abs(settled).max() == pytest.approx(1.0, abs=1e-3)


def test_the_layout_that_a_file_names_is_obeyed(tmp_path):
    tones = np.stack([make_tone(f, 1.0, 48000) for f in (200, 400, 600)])
    path = write_with_ffmpeg(tmp_path / "a.wav", tones, "pcm_s16le", "2.1", 48000)

    signal, _ = read(path, mono=False)

    expected = [[0.5, 0, 0], [0, 0.5, 0]]  # the third is for low frequencies alone
    np.testing.assert_allclose(measure_levels(signal, [200, 400, 600]), expected, atol=0.01)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "DOUBLE"])
def test_samples_of_every_kind_have_their_level(tmp_path, subtype):
    channels = np.stack([make_tone()] * 3, axis=1)
    soundfile.write(tmp_path / "a.wav", channels, SAMPLE_RATE, subtype=subtype)

    signal, _ = read(tmp_path / "a.wav")

    atol = 0.01 if subtype == "PCM_U8" else 1e-4
    np.testing.assert_allclose(signal, high_pass(make_tone()), atol=atol)


TONE = make_tone()


@pytest.mark.parametrize(
    "left, right, cancel",
    [
        (TONE, -TONE, True),
        (TONE + 0.3, 0.3 - 0.9 * TONE, True),  # beside a constant
        (TONE, make_tone(600), False),
        (TONE, TONE, False),
        (TONE, 0 * TONE, False),
        (0 * TONE + 0.3, 0 * TONE - 0.3, False),  # constants alone
        (0.02 * TONE + 0.3, 0.02 * TONE - 0.3, False),
    ],
)
def test_channels_that_cancel_in_mono_are_said(write_audio, left, right, cancel):
    path = write_audio("a.wav", np.stack([left, right], axis=1), subtype="FLOAT")

    _, remarks = read(path)

    said = ["has a left and a right that cancel each other out in mono: see --no-mono"]
    assert remarks == (said if cancel else [])


@pytest.mark.parametrize("kind", ["step", "sine"])
def test_wander_is_taken_away_from_all_of_a_file(write_audio, kind):
    time = np.arange(20 * 44100) / 44100
    wander = {"step": np.where(time < 10, 0.02, 0.1), "sine": 0.1 * np.sin(np.pi * time)}[kind]
    path = write_audio("a.wav", wander, 44100, subtype="FLOAT")

    signal, _ = read(path)

    assert np.abs(signal[11 * SAMPLE_RATE :]).max() < 0.1 * WANDER_LEFT


@pytest.mark.parametrize(
    "sample_rate, frequency, level_db, tolerance_db",
    [
        (44100, 10, -3.01, 0.1),
        (44100, 30, 0, 1.0),
        (44100, 100, 0, 0.1),
        (8000, 10, -3.01, 0.1),
        (96000, 10, -3.01, 0.1),
    ],
)
def test_a_tone_keeps_its_level_above_10_hz(
    write_audio, sample_rate, frequency, level_db, tolerance_db
):
    path = write_audio("a.wav", make_tone(frequency, 3.0, sample_rate), sample_rate)

    signal, _ = read(path)

    level = measure_levels(signal[SAMPLE_RATE:], frequency) / 0.5
    assert 20 * np.log10(level) == pytest.approx(level_db, abs=tolerance_db)


@pytest.mark.parametrize("read_block", [1, 1000, 1 << 18])
def test_a_signal_does_not_depend_on_where_blocks_end(write_audio, monkeypatch, read_block):
    monkeypatch.setattr("support.readers.READ_BLOCK", 2 * read_block)
    channels = np.stack([make_music(0.3) + 0.1, make_tone(55.3, 0.3)])
    path = write_audio("a.wav", channels.T, subtype="FLOAT")

    stereo, _ = read(path, mono=False)
    mono, _ = read(path)

    np.testing.assert_allclose(stereo, high_pass(channels), atol=ROUNDING)
    np.testing.assert_allclose(mono, high_pass(channels.mean(axis=0)), atol=ROUNDING)
    assert stereo.dtype == mono.dtype == np.float32


def test_a_file_that_begins_on_a_constant_has_no_click(write_audio):
    tones = np.stack([make_tone(duration=2.0), make_tone(660, duration=2.0)])
    path = write_audio("a.wav", tones.T + [0.1, -0.02], subtype="FLOAT")

    signal, _ = read(path, mono=False)

    np.testing.assert_allclose(signal, high_pass(tones), atol=ROUNDING)


def test_a_joined_file_of_another_rate_or_number_of_channels_has_no_click():
    kinds = [(22050, 1, 0.1), (44100, 1, -0.2), (44100, 2, 0.3)]
    blocks = [(rate, np.full((1000, n), value, np.float32)) for rate, n, value in kinds]

    signals = [signal for _, signal in audio.mix_blocks(blocks, True, [])]

    assert np.abs(signals).max() < ROUNDING


def test_silence_behind_a_sound_becomes_exact(write_audio, monkeypatch):
    monkeypatch.setattr("support.readers.READ_BLOCK", 1 << 14)
    path = write_audio("a.wav", np.pad(make_tone(), (0, 4 * SAMPLE_RATE)))

    signal, _ = read(path)

    assert not signal[-SAMPLE_RATE:].any()


@pytest.mark.parametrize("sample", [(np.inf, -np.inf), (3e38, 3e38)])
@pytest.mark.parametrize("mono", [True, False])
def test_samples_that_are_not_finite_are_refused_in_any_block(
    write_audio, monkeypatch, sample, mono
):
    monkeypatch.setattr("support.readers.READ_BLOCK", 1 << 14)
    channels = np.zeros((SAMPLE_RATE, 2))
    channels[-2:] = sample, np.negative(sample)
    path = write_audio("a.wav", channels, subtype="FLOAT")

    with pytest.raises(UserError, match="not finite"):
        read(path, mono)


def test_the_user_is_told_once_what_is_short(tmp_path, write_audio, capsys):
    cut(write_audio("a.wav", make_tone(duration=4.0)), 0.5)
    folders = tmp_path / "audio", tmp_path / "saved"
    preprocess.preprocess_folder(*folders, make_settings(), jobs=1)
    first = capsys.readouterr()

    preprocess.preprocess_folder(*folders, make_settings(), jobs=1)

    note = "note: 'a.wav' ends 2.0 s before the length that its header gives\n"
    assert first.err == note and "0 skipped" in first.out
    assert capsys.readouterr().err == ""
    assert len(dataset.list_keys(tmp_path / "saved" / "spectrograms")) == 7
