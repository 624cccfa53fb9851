"""Which tracks are learned from, validated on, and kept for tests.

In:  the keys of all pieces; a share, or a file of lists.
Out: the keys of each part.

    parts = split_by_list(keys, load_split("data/gtzan/split.json"))
"""

import collections
import math
import os

import numpy as np

from support import dataset
from support.files import make_printable, read_json

PARTS = ("train", "valid", "test")  # of a split
MAX_SPLIT_BYTES = 1 << 26  # of its file


def split_by_track(keys, validation_split, seed):
    """A mask of the validation pieces; no track has pieces on both sides.

    Returns:
        bool (len(keys),); all False where the share is 0 or there is one track alone.
    """
    tracks = sorted({dataset.get_track(key) for key in keys})
    n_held = math.ceil(validation_split * len(tracks)) if len(tracks) > 1 else 0
    shuffled = np.random.default_rng(seed).permutation(tracks)
    held = set(shuffled[: min(n_held, len(tracks) - 1)].tolist())
    return np.array([dataset.get_track(key) in held for key in keys])


def load_split(path):
    """The tracks of each part of a split, {part: {audio path}}.

    Args:
        path: JSON file of {"train": [...], "valid": [...], "test": [...]}, audio paths below
            their folder, each in one part at most.
    Raises:
        FileNotFoundError, ValueError: there is none, or it is none.
    """
    parts = read_json(path, MAX_SPLIT_BYTES)
    try:
        if not {"train"} <= parts.keys() <= {*PARTS}:
            raise ValueError(f"the parts must be {', '.join(PARTS)}, got {', '.join(parts)}")
        tracks = [track for part in parts.values() for track in part]
        if not all(isinstance(value, list) for value in parts.values()):
            raise ValueError("parts must be lists")
        if not all(isinstance(track, str) for track in tracks):
            raise ValueError("tracks must be paths")
        repeated = [track for track, count in collections.Counter(tracks).items() if count > 1]
        if repeated:
            raise ValueError(f"{repeated[0]} is listed {tracks.count(repeated[0])} times")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} must be a split, {{"train": [...], "valid": [...], "test": [...]}}: {error}'
        ) from error
    return {part: {*parts.get(part, ())} for part in PARTS}


def split_by_list(keys, parts):
    """The keys of each part of a split, {part: [key]}; what is in no part is left out.

    A listed track that is not there stands for one of its name with another ending (.au for
    .wav) that is in no part itself.

    Raises:
        ValueError: there is nothing to train on.
    """
    tracks = {dataset.get_track(key) for key in keys}
    listed_tracks = set().union(*parts.values())
    stems = {
        os.path.splitext(track)[0]: track for track in sorted(tracks - listed_tracks)
        if os.path.splitext(track)[1]
    }  # fmt: skip
    part_of, missing = {}, []
    for part, listed in parts.items():
        for track in sorted(listed):
            stem, ending = os.path.splitext(track)
            found = track if track in tracks else stems.get(stem) if ending else None
            if found is None:
                missing.append(track)
            else:
                part_of[found] = part
    chosen = {part: [] for part in PARTS}
    for key in keys:
        if (part := part_of.get(dataset.get_track(key))) is not None:
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
        raise ValueError("the split has no track to train on in these features: see --split")
    return chosen
