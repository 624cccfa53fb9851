"""The samples of an open audio file, read by libsndfile or by FFmpeg.

In:  a file object of any format that one of them reads.
Out: blocks of samples, float32, at the file's own rate; remarks on what is missing.

    for sample_rate, block in read_blocks(file, remarks=[]): ...
"""

import itertools
import operator
import os
import re
import struct

from support.errors import UserError
from support.files import native_silence

READ_BLOCK = 1 << 18  # samples decoded at a time, all channels together
NOTED_S = 0.1  # seconds; when more is missing, the user is told
NOTED_BYTES = 1 << 12  # behind the last chunk of a WAV
STREAMED_BYTES = 0x7FFF0000  # a WAV header with this length or more: its writer did not know it
ARCHIVES = {0: (b"PK\3\4", b"Rar!", b"7z\xbc\xaf"), 257: (b"ustar",)}  # {place: what is there}
DTS_WORDS = (  # that frames of it begin with, in 16 or 14 bits of a sample, or behind another word
    *(b"\x7f\xfe\x80\x01", b"\xfe\x7f\x01\x80", b"\x1f\xff\xe8\x00", b"\xff\x1f\x00\xe8"),
    b"\x72\xf8\x1f\x4e",
)
HEAD_BYTES = 1 << 16  # of a file, in which DTS is looked for
CHUNK_NAME = re.compile(rb".?[ -~]{4}", re.DOTALL)  # of a WAV, with or without a byte to fill up
FFMPEG_FORMATS = (  # none that refers to other files, or takes pictures or text for audio
    "aac,ac3,adx,aiff,amr,ape,asf,au,avi,caf,dsf,dts,eac3,flac,flv,iff,matroska,mlp,mov,mp3,mpc,"
    "mpc8,mpeg,mpegts,nut,ogg,oma,rm,shn,sox,tak,truehd,tta,voc,w64,wav,wv"
)
UNNAMED = re.compile(r"[5-8] channels")  # of layouts; FFmpeg knows where they usually are


def read_blocks(file, remarks):
    """Yield (sample rate, float32 (n, n_channels)), by the library that reads the file best.

    FFmpeg knows the channels' loudspeakers, and reads compressed formats to their end: libsndfile
    1.2 takes lengths of MP3 on trust, stops in a damaged FLAC, and may lose the end of an OGG. It
    would take archives for MPEG; they are refused, since their files usually lie beside them.

    Raises:
        UserError: neither reads it.
    """
    import soundfile

    head, is_read = file.read(HEAD_BYTES), False
    if any(head.startswith(names, place) for place, names in ARCHIVES.items()):
        raise UserError("is an archive: unpack it")
    n_missing = count_missing(file) if head.startswith(b"RIFF") else 0
    file.seek(0)
    try:
        with native_silence:
            sound_file = soundfile.SoundFile(file.fileno(), closefd=False)
    except (soundfile.LibsndfileError, TypeError):  # not a format of its own, or headerless
        sound_file = None
    if (
        sound_file is None
        or sound_file.format not in ("WAV", "WAVEX")  # which libsndfile reads four times as fast
        or sound_file.channels > 2
        or n_missing < 0
        or any(word in head for word in DTS_WORDS)
    ):
        place = file.tell()  # from which libsndfile would read on
        file.seek(0)
        try:
            for block in read_with_ffmpeg(file, remarks, n_missing < 0):
                is_read = True
                yield block
        except UserError:
            if is_read or sound_file is None:
                raise
            file.seek(place)
    if not is_read and sound_file is not None:
        with sound_file:
            yield from read_with_libsndfile(sound_file, remarks, n_missing)


def count_missing(file):
    """Bytes that a WAV's header promises and the file lacks, below 0 if it goes on behind them.

    Recorders that are cut off leave headers of less, and 32 bits count 6.8 hours of a CD's samples.
    What else follows begins with a name.
    """
    n_bytes, place, size, name = os.fstat(file.fileno()).st_size, 12, 0, b""
    while place + 8 <= n_bytes and name != b"data":
        file.seek(place)
        name, size = struct.unpack("<4sI", file.read(8))
        place += 8 + size + (size % 2 if name != b"data" else 0)  # a byte fills others up
    file.seek(place)
    n_more = n_bytes - place
    is_known = name == b"data" and size < STREAMED_BYTES
    if not is_known or 0 < n_more <= NOTED_BYTES or CHUNK_NAME.match(file.read(5)):
        return 0
    return -n_more


def read_with_libsndfile(sound_file, remarks, n_missing):
    """Yield (sample rate, float32 (n, n_channels)) of an open SoundFile.

    A header may promise more than the file holds, so memory grows with what is decoded.

    Args:
        n_missing: bytes that its header promises besides.
    """
    import soundfile

    rate, n_block, n_read = sound_file.samplerate, READ_BLOCK // sound_file.channels, 0
    while True:
        try:
            with native_silence:
                block = sound_file.read(n_block, "float32", always_2d=True)
        except soundfile.LibsndfileError:
            break
        if not len(block):
            break
        n_read += len(block)
        yield rate, block
    n_bytes = os.fstat(sound_file.name).st_size  # the name is the descriptor
    n_missing = n_missing * sound_file.frames / n_bytes + sound_file.frames - n_read
    if n_missing / rate > NOTED_S:
        remarks.append(f"ends {n_missing / rate:.1f} s before the length that its header gives")


def read_with_ffmpeg(file, remarks, is_longer=False):
    """Yield (sample rate, float32 (n, n_channels)) of the first audio stream of a file.

    More than two channels become two, if the places of their loudspeakers are known.

    Args:
        is_longer: whether a WAV goes on behind the end that its header gives.
    """
    import av

    try:
        # With a file object, PyAV 18.1 prints the errors of seeks in damaged files.
        options = {"fd": str(file.fileno()), "format_whitelist": FFMPEG_FORMATS}
        options |= {"ignore_length": "1"} if is_longer else {}
        container = av.open("fd:", container_options=options, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise UserError("not readable as audio") from error
    with container:
        if not any(stream.codec_context for stream in container.streams.audio[:1]):
            raise UserError("holds no audio that can be decoded")
        yield from convert(decode_frames(container, remarks))


def decode_frames(container, remarks):
    """Yield the frames of the first audio stream; packets that are damaged are left out."""
    import av

    stream = container.streams.audio[0]
    damaged_s = 0.0
    lost_s = 0.0  # in damaged packets since the last good one
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                lost_s += float((packet.duration or 0) * stream.time_base)
                continue
            if frames:
                damaged_s, lost_s = damaged_s + lost_s, 0.0
            yield from frames
    except av.error.FFmpegError:
        pass  # nothing behind this place can be found
    if damaged_s > NOTED_S:
        remarks.append(f"lacks {damaged_s:.1f} s that are damaged")


def convert(frames):
    """Yield FFmpeg's frames as (sample rate, float32 (n, n_channels)), joined to larger ones."""
    kind = operator.attrgetter("sample_rate", "format.name", "layout.name")
    for (rate, _, _), group in itertools.groupby(frames, key=kind):  # where files were joined
        resampler = None
        for frame in itertools.chain(group, [None]):  # None: what is left
            if frame:
                resampler = resampler or make_resampler(frame.layout)
                frame.pts = None  # else a gap would be an error
            for joined in resampler.resample(frame):
                yield rate, joined.to_ndarray().reshape(-1, joined.layout.nb_channels)


def make_resampler(layout):
    """What joins frames to READ_BLOCK samples, and mixes a layout that FFmpeg knows to stereo."""
    import av

    names, n_channels = {channel.name for channel in layout.channels}, layout.nb_channels
    is_known = names.isdisjoint(["NONE", "AMBI0"]) or UNNAMED.fullmatch(layout.name)
    mixed = "stereo" if n_channels > 2 and is_known else None
    how = {"rematrix_maxval": "1"}  # full scale everywhere does not clip
    return av.AudioResampler("flt", mixed, frame_size=READ_BLOCK // n_channels, options=how)
