"""Render the demo set: small pieces of music in ten styles, one folder each.

Out: data/demo/audio/<style>/<style>.<clip>.wav, 16-bit mono at 22050 Hz.

    python data/demo/prepare.py
"""

import shutil
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from support.command_line import make_parser, number, run_script

FOLDER = Path(__file__).parent / "audio"
SAMPLE_RATE = 22050  # Hz
CLIP_S = 12.0  # seconds a clip
CLIPS = 3  # a style
SEED = 0

# Harmony is a list of chords, one a bar: (semitones above the key, chord quality). Drums, bass and
# chords ("comp") are played at the x of the sixteen steps of a bar. Timbre is the strength of the
# harmonics of (chords, lead).
QUALITIES = {  # semitones above the root
    "maj": (0, 4, 7),
    "min": (0, 3, 7),
    "dom7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "min7": (0, 3, 7, 10),
    "power": (0, 7, 12),
}
ORGAN = (1, 0.8, 0.5, 0, 0.3)
STRING = (1, 0.5, 0.33, 0.25, 0.2)
FLUTE = (1, 0.1)
BRASS = (1, 0.9, 0.8, 0.6, 0.4, 0.3)
BELL = (1, 0, 0.6, 0, 0.4, 0, 0.25)
FUZZ = (1, 1, 0.9, 0.9, 0.8, 0.8, 0.6, 0.6, 0.5, 0.5)
STYLES = {
    "blues": dict(
        bpm=96,
        swing=0.33,
        chords=[(0, "dom7"), (5, "dom7"), (0, "dom7"), (7, "dom7")],
        kick="x.......x.......",
        snare="....x.......x...",
        hat="x.x.x.x.x.x.x.x.",
        bass="x...x...x...x...",
        comp="..x.....x.....x.",
        scale=(0, 3, 5, 6, 7, 10),
        timbre=(ORGAN, BRASS),
        decay_s=0.5,
    ),
    "classical": dict(
        bpm=84,
        swing=0.0,
        chords=[(0, "maj"), (9, "min"), (5, "maj"), (7, "maj")],
        kick="",
        snare="",
        hat="",
        bass="x.......x.......",
        comp="x.x.x.x.x.x.x.x.",
        scale=(0, 2, 4, 5, 7, 9, 11),
        timbre=(STRING, FLUTE),
        decay_s=1.2,
    ),
    "country": dict(
        bpm=112,
        swing=0.0,
        chords=[(0, "maj"), (5, "maj"), (7, "maj"), (0, "maj")],
        kick="x.......x.......",
        snare="....x.......x...",
        hat="..x...x...x...x.",
        bass="x.......x.......",
        comp="....x.x.....x.x.",
        scale=(0, 2, 4, 7, 9),
        timbre=(STRING, STRING),
        decay_s=0.35,
    ),
    "disco": dict(
        bpm=120,
        swing=0.0,
        chords=[(0, "min7"), (5, "min7"), (10, "dom7"), (3, "maj7")],
        kick="x...x...x...x...",
        snare="....x.......x...",
        hat="..x...x...x...x.",
        bass="x.x.x.x.x.x.x.x.",
        comp="..x..x....x..x..",
        scale=(0, 2, 3, 5, 7, 10),
        timbre=(STRING, BELL),
        decay_s=0.3,
    ),
    "hiphop": dict(
        bpm=88,
        swing=0.2,
        chords=[(0, "min7"), (0, "min7"), (8, "maj7"), (7, "min7")],
        kick="x..x..x...x.....",
        snare="....x.......x..x",
        hat="xxx.x.xxx.x.x.xx",
        bass="x..x..x.........",
        comp="x...............",
        scale=(0, 3, 5, 7, 10),
        timbre=(ORGAN, BELL),
        decay_s=0.9,
    ),
    "jazz": dict(
        bpm=132,
        swing=0.33,
        chords=[(2, "min7"), (7, "dom7"), (0, "maj7"), (9, "dom7")],
        kick="",
        snare="..............x.",
        hat="x...x.x.x...x.x.",
        bass="x...x...x...x...",
        comp="..x...x....x....",
        scale=(0, 2, 4, 5, 7, 9, 10, 11),
        timbre=(BELL, BRASS),
        decay_s=0.4,
    ),
    "metal": dict(
        bpm=150,
        swing=0.0,
        chords=[(0, "power"), (0, "power"), (1, "power"), (3, "power")],
        kick="x.xxx.xxx.xxx.xx",
        snare="....x.......x...",
        hat="x...x...x...x...",
        bass="x.xxx.xxx.xxx.xx",
        comp="x.xxx.xxx.xxx.xx",
        scale=(0, 1, 3, 5, 6, 7, 10),
        timbre=(FUZZ, FUZZ),
        decay_s=0.2,
    ),
    "pop": dict(
        bpm=104,
        swing=0.0,
        chords=[(0, "maj"), (7, "maj"), (9, "min"), (5, "maj")],
        kick="x.....x.x.......",
        snare="....x.......x...",
        hat="x.x.x.x.x.x.x.x.",
        bass="x..x..x.x..x..x.",
        comp="x...x...x...x...",
        scale=(0, 2, 4, 7, 9),
        timbre=(ORGAN, FLUTE),
        decay_s=0.6,
    ),
    "reggae": dict(
        bpm=76,
        swing=0.1,
        chords=[(0, "min"), (5, "min"), (0, "min"), (7, "min")],
        kick="........x.......",
        snare="........x.......",
        hat="..x...x...x...x.",
        bass="x..x..x.....x.x.",
        comp="....x.......x...",
        scale=(0, 2, 3, 5, 7, 10),
        timbre=(ORGAN, FLUTE),
        decay_s=0.18,
    ),
    "rock": dict(
        bpm=126,
        swing=0.0,
        chords=[(0, "power"), (5, "power"), (10, "power"), (5, "power")],
        kick="x.....x.x.x.....",
        snare="....x.......x...",
        hat="x.x.x.x.x.x.x.x.",
        bass="x.x.x.x.x.x.x.x.",
        comp="x.x.x.x.x.x.x.x.",
        scale=(0, 3, 5, 7, 10),
        timbre=(FUZZ, STRING),
        decay_s=0.35,
    ),
}


def midi_to_hz(note):
    return 440.0 * 2 ** ((note - 69) / 12)


def play_tone(note, length_s, harmonics, decay_s, rng):
    """One plucked or blown note: harmonics that fade, the higher ones faster; float64."""
    time = np.arange(int(length_s * SAMPLE_RATE)) / SAMPLE_RATE
    frequency = midi_to_hz(note) * (1 + 0.001 * rng.standard_normal())
    tone = np.zeros_like(time)
    for rank, strength in enumerate(harmonics, 1):
        if strength and rank * frequency < SAMPLE_RATE / 2:
            fade = np.exp(-time * (1 + 0.3 * rank) / decay_s)
            phase = rng.uniform(0, 2 * np.pi)
            tone += strength * fade * np.sin(2 * np.pi * rank * frequency * time + phase)
    attack = np.minimum(1, time / 0.004)
    release = np.minimum(1, (length_s - time) / 0.01)
    return tone * attack * release / np.sqrt(np.square(harmonics).sum())


def play_drum(kind, rng):
    """One stroke of a kick, a snare or a hat; float64."""
    time = np.arange(int(0.3 * SAMPLE_RATE)) / SAMPLE_RATE
    noise = rng.standard_normal(len(time))
    if kind == "kick":
        phase = 2 * np.pi * (48 * time - 3.2 * np.exp(-time * 35))
        return np.sin(phase) * np.exp(-time * 14)
    if kind == "snare":
        body = np.sin(2 * np.pi * 190 * time) * np.exp(-time * 25)
        return 0.5 * body + 0.35 * noise * np.exp(-time * 18)
    return 0.25 * np.diff(noise, prepend=0.0) * np.exp(-time * 60)


def add_at(track, start_s, sound, gain):
    start = int(start_s * SAMPLE_RATE)
    end = min(len(track), start + len(sound))
    if start < len(track):
        track[start:end] += gain * sound[: end - start]


def render_clip(style, key, rng):
    """One clip of a style; float32 (n_samples,), peak 0.8."""
    track = np.zeros(int(CLIP_S * SAMPLE_RATE))
    step_s = 60 / style["bpm"] / 4
    lead_index = rng.integers(len(style["scale"]))
    for step in range(int(CLIP_S / step_s) + 1):
        bar, beat = divmod(step, 16)
        start_s = (step + (step % 4 == 2) * style["swing"] * 2) * step_s
        offset, quality = style["chords"][bar % len(style["chords"])]
        for drum, gain in (("kick", 0.9), ("snare", 0.7), ("hat", 0.35)):
            if style[drum][beat : beat + 1] == "x":
                add_at(track, start_s, play_drum(drum, rng), gain * rng.uniform(0.85, 1))
        if style["bass"][beat] == "x":
            note = key - 24 + offset + (7 if beat >= 8 and rng.random() < 0.4 else 0)
            add_at(track, start_s, play_tone(note, 4 * step_s, (1, 0.5, 0.2), 0.4, rng), 0.55)
        if style["comp"][beat] == "x":
            for interval in QUALITIES[quality]:
                tone = play_tone(
                    key + offset + interval, 6 * step_s, style["timbre"][0], style["decay_s"], rng
                )
                add_at(track, start_s, tone, 0.16)
        if beat % 2 == 0 and rng.random() < 0.45:
            lead_index = (lead_index + rng.integers(-2, 3)) % len(style["scale"])
            note = key + 12 + style["scale"][lead_index]
            tone = play_tone(note, 4 * step_s, style["timbre"][1], 0.5, rng)
            add_at(track, start_s, tone, 0.22)
    return (0.8 * track / np.abs(track).max()).astype(np.float32)


def render(folder, clips=CLIPS, seed=SEED):
    """Write every clip of every style below a folder, when all are rendered.

    Clips that are there already stay.
    """
    import soundfile

    folder = Path(folder).resolve()
    temporary = folder.with_name(f".{folder.name}.tmp")
    if temporary.exists():  # left behind by an interrupted run
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    for index, (name, style) in enumerate(STYLES.items()):
        for clip in range(clips):
            path = temporary / name / f"{name}.{clip:05d}.wav"
            if (folder / name / path.name).exists():
                continue
            path.parent.mkdir(exist_ok=True)
            rng = np.random.default_rng([seed, index, clip])
            signal = render_clip(style, int(rng.integers(52, 64)), rng)
            soundfile.write(path, signal, SAMPLE_RATE, subtype="PCM_16")
    if not folder.exists():
        temporary.rename(folder)
        return
    for path in sorted(temporary.rglob("*.wav")):
        final = folder / path.relative_to(temporary)
        final.parent.mkdir(exist_ok=True)
        path.replace(final)
    shutil.rmtree(temporary)


def get_parser():
    parser = make_parser(__doc__)
    parser.add_argument("--folder", default=FOLDER, help="folder to write")
    parser.add_argument("--clips", type=number(int, 0), default=CLIPS, help="of each style")
    parser.add_argument("--seed", type=number(int, 0), default=SEED, help="of the notes")
    return parser


def main(argv=None):
    options = get_parser().parse_args(argv)
    render(options.folder, options.clips, options.seed)
    print(f"{len(STYLES) * options.clips} clips in {options.folder}")


if __name__ == "__main__":
    run_script(main)
