"""Which tracks are trained on, validated on, and kept for tests.

In:  the keys of all pieces; a share, or a file of lists.
Out: the keys of each part.

    parts = split_by_list(keys, load_split("data/gtzan/split.json"))
"""

import collections
import math
import os

import numpy as np

from support import dataset
from support.errors import UserError
from support.files import make_printable, read_json

PARTS = ("train", "valid", "test")  # of a split
MAX_SPLIT_BYTES = 1 << 26  # of its file


def split_by_track(keys, validation_split, seed):
    """The keys of each part of a random split, {part: [key]}; no track is in two parts.

    A share of the tracks is for validation, none if there is only one; the rest is for training.
    """
    tracks = sorted({dataset.get_track(key) for key in keys})
    n_valid = math.ceil(validation_split * len(tracks)) if len(tracks) > 1 else 0
    shuffled = np.random.default_rng(seed).permutation(tracks)
    valid_tracks = {*shuffled[: min(n_valid, len(tracks) - 1)].tolist()}
    parts = {part: [] for part in PARTS}
    for key in keys:
        parts["valid" if dataset.get_track(key) in valid_tracks else "train"].append(key)
    return parts


def load_split(path):
    """The tracks of each part of a split, {part: {audio path}}.

    Args:
        path: JSON file of {"train": [...], "valid": [...], "test": [...]}, audio paths relative
            to their folder, each in one part at most.
    Raises:
        FileNotFoundError: it does not exist.
        UserError: it is not such a file.
    """
    parts = read_json(path, MAX_SPLIT_BYTES)
    try:
        if not {"train"} <= parts.keys() <= {*PARTS}:
            raise UserError(f"the parts must be {', '.join(PARTS)}, got {', '.join(parts)}")
        tracks = [track for part in parts.values() for track in part]
        if not all(isinstance(value, list) for value in parts.values()):
            raise UserError("parts must be lists")
        if not all(isinstance(track, str) for track in tracks):
            raise UserError("tracks must be paths")
        repeated = [track for track, count in collections.Counter(tracks).items() if count > 1]
        if repeated:
            raise UserError(f"{repeated[0]} is listed {tracks.count(repeated[0])} times")
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f'{path} must be a split, {{"train": [...], "valid": [...], "test": [...]}}: {error}'
        ) from error
    return {part: {*parts.get(part, ())} for part in PARTS}


def split_by_list(keys, parts):
    """The keys of each part of a split, {part: [key]}; tracks in no part are ignored.

    If a listed track does not exist, one of its name with another ending (.au for .wav) that is
    in no part itself takes its place.

    Raises:
        UserError: there is nothing to train on.
    """
    tracks = {dataset.get_track(key) for key in keys}
    listed_tracks = set().union(*parts.values())
    unlisted = {}  # {path without its ending: track}
    for track in sorted(tracks - listed_tracks):
        stem, ending = os.path.splitext(track)
        if ending:
            unlisted[stem] = track
    part_of, missing = {}, []
    for part, listed in parts.items():
        for track in sorted(listed):
            stem, ending = os.path.splitext(track)
            substitute = unlisted.get(stem) if ending else None
            if track in tracks:
                part_of[track] = part
            elif substitute:
                part_of[substitute] = part
            else:
                missing.append(track)
    chosen = {part: [] for part in PARTS}
    for key in keys:
        part = part_of.get(dataset.get_track(key))
        if part is not None:
            chosen[part].append(key)
    counts = collections.Counter(part_of.values())
    print(
        f"split: {counts['train']} tracks to train on, {counts['valid']} to validate on, "
        f"{counts['test']} kept for tests, {len(tracks) - len(part_of)} in no part; "
        f"{len(missing)} listed ones have no features"
        + (f": {make_printable(', '.join(missing[:5]))}" if missing else "")
        + (" ..." if len(missing) > 5 else ""),
        flush=True,
    )
    if not chosen["train"]:
        raise UserError("the split has no track to train on in these features: see --split")
    return chosen
