import json

import numpy as np
import pytest

import preprocess
from helpers import SAMPLE_RATE, make_music, make_settings, make_tone
from support import dataset
from training.splits import split_keys
from training.twins import MIN_SIMILARITY, extract_fingerprint, find_twins, label_groups


@pytest.fixture
def make_features(tmp_path, write_audio):
    """Preprocesses {name: signal}; the folder of the spectrograms, and their keys."""

    def make(signals, **fields):
        for name, signal in signals.items():
            write_audio(name, signal)
        preprocess.preprocess_folder(
            tmp_path / "audio", tmp_path / "saved", make_settings(**fields)
        )
        features = dataset.Features.of(tmp_path / "saved")
        return features, features.keys

    return make


def make_recordings(n):
    """{name: signal} of different recordings."""
    return {f"{seed}.wav": make_music(duration=2.4, seed=seed) for seed in range(n)}


def get_tracks(keys):
    return {dataset.get_track(key) for key in keys}


@pytest.mark.parametrize("mono", [True, False])
def test_copies_are_twins(make_features, mono):
    recordings = make_recordings(3)
    original = recordings["0.wav"]
    copies = {
        "a.mp3": original,
        "b.ogg": original,
        "folder/0.wav": original,
        "half as loud.wav": original / 2,
        "later.wav": np.pad(original, (200, 0)),  # 9 ms, of pieces of 0.3 s
    }
    signals = recordings | copies
    if not mono:
        signals = {name: np.stack([s, np.roll(s, 3000)], axis=1) for name, s in signals.items()}

    assert find_twins(*make_features(signals, mono=mono)) == [["0.wav", *copies]]


def test_what_resembles_in_part_is_no_twin(make_features):
    start, jingle, *ends = (
        make_music(duration, seed)
        for seed, duration in enumerate((0.3, 1.5, 2.1, 2.1, 1.5, 1.5), start=20)
    )
    time = np.arange(6615) / SAMPLE_RATE
    recordings = make_recordings(12) | {
        **{f"start {i}.wav": np.concatenate([start, ends[i]]) for i in (0, 1)},
        **{f"jingle {i}.wav": np.concatenate([jingle, ends[i]]) for i in (2, 3)},
        "whole.wav": make_music(4.0, seed=30),
        "half.wav": make_music(4.0, seed=30)[:44100],
        **{f"drone {i}.wav": ends[i] / 100 + make_tone(440, 2.1) for i in (0, 1)},
        **{f"silence {i}.wav": np.zeros(50000, np.float32) for i in (0, 1)},
        **{
            f"hit of {hz} Hz.wav": np.sin(2 * np.pi * hz * time * np.exp(-time))
            * np.exp(-10 * time)
            for hz in range(50, 60)
        },
    }

    assert find_twins(*make_features(recordings)) == []


@pytest.mark.parametrize("shape", [(2, 3, 1), (1, 1), (700, 5)])
def test_pieces_of_any_shape_have_a_fingerprint(tmp_path, shape):
    image = np.random.default_rng(0).random(shape, np.float32)
    preprocess.Saver(tmp_path, tmp_path).save_feature(image, "a.wav.000.npy")

    fingerprint = extract_fingerprint(tmp_path, ["a.wav.000.npy"])

    n_rows = (shape[0] + 1) // 2  # one row has no neighbour to differ from
    assert np.linalg.norm(fingerprint) == pytest.approx(float(n_rows > 1), abs=1e-6)  # float32


def test_twins_are_those_of_a_groups_first_across_blocks():
    angles = np.arccos(MIN_SIMILARITY) * np.array([0.0, 0.9, 1.8, 0.5])  # no chain to the third
    fingerprints = np.zeros((900, 902), np.float32)
    fingerprints[np.arange(900), np.arange(900)] = 1
    for index, angle in zip((10, 400, 800, 850), angles, strict=True):
        fingerprints[index] = 0
        fingerprints[index, -2:] = np.cos(angle), np.sin(angle)

    labels = label_groups(fingerprints, lambda first, second: second != 850)

    assert np.flatnonzero(labels != np.arange(900)).tolist() == [400]
    assert labels[400] == 10


def test_a_random_split_keeps_copies_in_one_part(make_features, capsys):
    recordings = make_recordings(6)
    copies = {name.replace(".wav", ".mp3"): signal for name, signal in recordings.items()}
    features, keys = make_features(recordings | copies)
    capsys.readouterr()

    for seed in range(5):
        parts = split_keys(features, None, 0.3, seed)

        stems = [{track.split(".")[0] for track in get_tracks(parts[p])} for p in parts]
        assert [*map(len, stems)] == [4, 2, 0] and not stems[0] & stems[1]
        assert sorted(parts["train"] + parts["valid"]) == sorted(keys)
    assert capsys.readouterr().out.splitlines()[0] == (
        "6 tracks are copies of others, by their sound (0.wav of 0.mp3): "
        "each is kept on the side of its twin"
    )


def test_without_validation_no_twins_are_looked_for(tmp_path):
    features = dataset.Features.of(tmp_path)
    features.keys = ["a.wav.000.npy", "b.wav.000.npy"]  # that do not exist

    assert split_keys(features, None, 0, seed=0)["train"] == features.keys


def test_copies_in_two_parts_of_a_list_are_named(tmp_path, make_features, capsys):
    recordings = make_recordings(3)
    features, _ = make_features(recordings | {"copy.ogg": recordings["0.wav"]})
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["0.wav", "1.wav"], "valid": ["2.wav", "copy.ogg"]}))

    parts = split_keys(features, split, 0.1, seed=0)

    assert get_tracks(parts["valid"]) == {"2.wav", "copy.ogg"}
    assert capsys.readouterr().err == (
        "warning: 1 recordings are in more than one part of the split, by their sound: "
        "0.wav (train), copy.ogg (valid)\n"
    )
    split.write_text(json.dumps({"train": ["0.wav", "copy.ogg"], "valid": ["1.wav"]}))
    split_keys(features, split, 0.1, seed=0)
    assert capsys.readouterr().err == ""
