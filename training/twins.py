"""Which tracks hold the same recording: in two formats, under two names, or in two folders.

In:  Features, and the keys of their pieces.
Out: groups of tracks.

    twins = find_twins(features, features.keys)
"""

import concurrent.futures
import functools

import numpy as np

from support import dataset

N_PIECES = 2  # that all tracks are compared by, at their start
N_BINS, N_FRAMES = 256, 8  # cells of a piece's lower half
MIN_SIMILARITY = 0.75  # most copies in lossy formats have over 0.85, other music at most 0.5
MIN_SECONDS = 2.0  # different drum hits can be as alike as copies
BLOCK_SIZE = 256  # tracks compared with all others at once


def find_twins(features, keys):
    """The tracks that are twins of a group's first one, [[track, ...], ...].

    Twins begin alike: the cosine similarity of their fingerprints is MIN_SIMILARITY or more. They
    are as long, and so alike in the middle and at the end, too: a jingle makes no twins.

    Args:
        keys: of all pieces of the tracks, in the order of dataset.list_keys.
    Raises:
        UserError: a piece that is compared is damaged.
    """
    pieces = dataset.group_by_track(keys)
    least = MIN_SECONDS / features.settings.duration
    pieces = {track: own for track, own in pieces.items() if len(own) >= least}
    fingerprints = np.empty((len(pieces), N_PIECES * (N_BINS - 1) * N_FRAMES), np.float32)
    extract = functools.partial(extract_fingerprint, features.path)
    with concurrent.futures.ThreadPoolExecutor() as executor:
        starts = (own[:N_PIECES] for own in pieces.values())
        for index, fingerprint in enumerate(executor.map(extract, starts)):
            fingerprints[index] = fingerprint
    tracks, owned = [*pieces], [*pieces.values()]

    def go_on_alike(first, second):
        one, other = owned[first], owned[second]
        least = min(len(one), len(other))
        return max(len(one), len(other)) <= least + 1 and all(
            extract([one[place]]) @ extract([other[place]]) >= MIN_SIMILARITY
            for place in (least // 2, least - 1)
        )

    groups = {}  # {index of a group's first track: tracks}
    for track, first in zip(tracks, label_groups(fingerprints, go_on_alike), strict=True):
        groups.setdefault(first, []).append(track)
    return [tracks for tracks in groups.values() if len(tracks) > 1]


def extract_fingerprint(spectrograms_path, keys):
    """What a track's copies share whatever their format and level.

    It is where the level rises and falls from bin to bin: the differences between neighbouring
    bins, averaged over an eighth of a piece, in the lower half of the bins, which lossy formats
    keep best. Their square roots are taken so that a few strong partials do not decide.

    Args:
        keys: of at most N_PIECES of the track's pieces.
    Returns:
        float32 (N_PIECES * (N_BINS - 1) * N_FRAMES,), a vector of length 1; 0 for silence.
    Raises:
        UserError: a piece is damaged.
    """
    slopes = np.zeros((N_PIECES, N_BINS - 1, N_FRAMES), np.float32)
    for index, key in enumerate(keys):
        image = dataset.load_spectrogram(spectrograms_path, key)  # (n_bins, n_frames, n_channels)
        image = image[: (len(image) + 1) // 2].mean(axis=-1)
        cells = average_cells(average_cells(image, N_FRAMES).T, N_BINS)  # (N_FRAMES, N_BINS)
        slopes[index] = np.diff(cells).T
    roots = np.sign(slopes) * np.sqrt(np.abs(slopes))
    return roots.ravel() / (np.linalg.norm(roots) or 1)


def average_cells(rows, n_cells):
    """The means of n_cells equal parts of each row, float (n_rows, n_cells).

    Rows of fewer than n_cells values are stretched: their values repeat.
    """
    edges = np.arange(n_cells + 1) * rows.shape[1] // n_cells
    return np.add.reduceat(rows, edges[:-1], axis=1) / np.maximum(np.diff(edges), 1)


def label_groups(fingerprints, go_on_alike):
    """For each track the index of the first one of its group, int (n_tracks,).

    Args:
        go_on_alike: a function from two indices to whether these tracks are alike beyond what their
            fingerprints tell.
    """
    labels = np.arange(len(fingerprints))
    for start in range(0, len(fingerprints), BLOCK_SIZE):
        block = fingerprints[start : start + BLOCK_SIZE]
        begin_alike = block @ fingerprints[start:].T >= MIN_SIMILARITY  # (block, tracks from start)
        for first, row in enumerate(begin_alike, start):
            if labels[first] != first:
                continue
            for second in start + np.flatnonzero(row):
                if second > first and labels[second] == second and go_on_alike(first, second):
                    labels[second] = first
    return labels
