"""Which tracks are trained on, validated on, and kept for tests.

In:  Features; a share, or a file of lists.
Out: the keys of each part.

    parts = split_keys(Features.of("saved_data"), None, validation_split=0.1, seed=0)
"""

import collections
import itertools
import os
import sys

import numpy as np

from support import dataset
from support.dataset import PARTS, load_split
from support.errors import UserError
from support.files import make_printable
from training.twins import find_twins

MOST_HELD_OUT = 1.5  # times the share that is asked for


def split_keys(features, split, validation_split, seed):
    """The keys of each part of a split, {part: [key]}.

    Args:
        split: file of the tracks of each part; None: at random, with twins in the same part.
        validation_split: share of the pieces to validate on, at random.
        seed: of the random split.
    Raises:
        FileNotFoundError: split does not exist.
        UserError: split is not such a file, or has nothing to train on; a piece is damaged.
    """
    if split:
        parts = split_by_list(features.keys, load_split(split))
        warn_of_twins(parts, find_twins(features, sum(parts.values(), [])))
        return parts
    twins = find_twins(features, features.keys) if validation_split else []
    return split_by_track(features.keys, validation_split, seed, twins)


def split_by_track(keys, validation_split, seed, twins=()):
    """The keys of each part of a random split, {part: [key]}; no recording is in two parts.

    A recording is a track with its twins. A share of the pieces is for validation, as near as whole
    recordings bring it and at most half as much again, but one recording at least if there are
    two; the rest is for training. Each genre keeps one to train on, if another has one to spare.

    Args:
        twins: groups of tracks, as find_twins gives them.
    """
    first_twins = {track: tracks[0] for tracks in twins for track in tracks}
    recordings = [first_twins.get(track, track) for track in map(dataset.get_track, keys)]
    sizes = collections.Counter(sorted(recordings))
    held_out = choose_held_out(sizes, validation_split, seed)
    parts = {part: [] for part in PARTS}
    for key, recording in zip(keys, recordings, strict=True):
        parts["valid" if recording in held_out else "train"].append(key)
    if twins:
        first, second = map(make_printable, twins[0][:2])
        print(
            f"{len(first_twins) - len(twins)} tracks are copies of others, by their sound "
            f"({second} of {first}): each is kept on the side of its twin",
            flush=True,
        )
    return parts


def choose_held_out(sizes, share, seed):
    """The names of the recordings to validate on; see split_by_track().

    Args:
        sizes: {name: pieces}.
        share: of the pieces.
    """
    by_genre = {}
    for name in np.random.default_rng(seed).permutation([*sizes]).tolist():
        by_genre.setdefault(dataset.get_genre(name), []).append(name)
    # The first of each genre, then the second of each, and so on, but for the last of each.
    spare = [names[:-1] for names in by_genre.values()]
    order = [name for names in itertools.zip_longest(*spare) for name in names if name]
    order = order or [name for names in by_genre.values() for name in names][:-1]
    wanted, chosen, n_chosen = share * sum(sizes.values()), set(), 0
    for name in order:
        n_with = n_chosen + sizes[name]
        if n_with <= MOST_HELD_OUT * wanted and abs(n_with - wanted) < abs(n_chosen - wanted):
            chosen.add(name)
            n_chosen = n_with
    if share and order and not chosen:
        chosen = {min(order, key=sizes.get)}
    return chosen


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
            found = track if track in tracks else ending and unlisted.pop(stem, None)
            if found:
                part_of[found] = part
            else:
                missing.append(track)
    chosen = {part: [] for part in PARTS}
    for key in keys:
        if part := part_of.get(dataset.get_track(key)):
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


def warn_of_twins(parts, twins):
    """Say which recordings are in more than one part of a split.

    Args:
        parts: {part: [key]}.
        twins: groups of the parts' tracks, as find_twins gives them.
    """
    part_of = {dataset.get_track(key): part for part, keys in parts.items() for key in keys}
    divided = [tracks for tracks in twins if len({part_of[track] for track in tracks}) > 1]
    if divided:
        places = ", ".join(f"{make_printable(track)} ({part_of[track]})" for track in divided[0])
        print(
            f"warning: {len(divided)} recordings are in more than one part of the split, by their "
            f"sound: {places}" + (" ..." if len(divided) > 1 else ""),
            file=sys.stderr,
        )
