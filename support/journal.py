"""The record of what is done, so that an interrupted run can go on, and a later one skip it.

In:  the outcome of each audio file.
Out: tracks.jsonl: a line for the features' origin, and one for each file that is done.

    journal = Journal("saved_data/min_max_values/tracks.jsonl", feature_save_dir)
    outcomes = journal.begin(origin, audio_files_dir, stamps)
"""

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

from support.dataset import FEATURE_NAME, make_key
from support.errors import UserError
from support.files import TEMPORARY_NAME, make_printable, read_file, walk, write_atomically


class Outcome(NamedTuple):
    """What became of an audio file."""

    stamp: list | None  # its size and time of change; None if the next run is to try it again
    n_bytes: int  # of each of its features
    ranges: list  # [min, max] of each of its features, dB
    reason: str  # why it was skipped, or ""
    remark: str = ""  # what the user should know of a file that was used
    seconds: float = 0.0  # of sound in its features, without silence at their ends

    @classmethod
    def skip(cls, reason, stamp=None):
        """The Outcome of a file that gives no features."""
        return cls(stamp, 0, [], reason)

    def list_keys(self, name):
        return [make_key(name, segment) for segment in range(len(self.ranges))]


class Journal:
    """The file of outcomes, and the folder of features that it speaks of."""

    def __init__(self, path, feature_save_dir):
        self.path = Path(path)
        self.feature_save_dir = Path(feature_save_dir)

    def begin(self, origin, audio_files_dir, stamps):
        """Start a run: keep the outcomes that still hold, and forget the others.

        Args:
            origin: all that features depend on besides the audio files, for JSON.
            audio_files_dir: the folder of audio, to name in an error.
            stamps: {name: [bytes, time of change]} of the audio files.
        Returns:
            {name: Outcome} of what need not be done again, gone files included.
        Raises:
            UserError: all files of earlier runs are gone; nothing was changed.
        """
        recorded_origin, outcomes = self._load()
        note_gone(audio_files_dir, outcomes, stamps)
        if recorded_origin != json.loads(json.dumps(origin)):
            outcomes = {}
        kept = {}
        for name, outcome in outcomes.items():
            is_current = stamps.get(name, outcome.ranges and outcome.stamp) == outcome.stamp
            if outcome.stamp and is_current and self._has_features(name, outcome):
                kept[name] = outcome
        n_waiting = len(stamps.keys() - kept.keys())
        if kept:
            print(f"{len(kept)} files are done already, {n_waiting} are new or changed")
        if n_waiting or kept.keys() != outcomes.keys():
            self.save(origin, kept)
        return kept

    def _load(self):
        """(origin, {name: Outcome} as far as the file is whole)."""
        origin, outcomes = None, {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            # What is suppressed is an incomplete last line; the work it recorded is done again.
            first, *lines = read_file(self.path).splitlines()
            origin = json.loads(first)
            for line in lines:
                name, *fields = json.loads(line)
                outcome = Outcome(*fields)
                ranges = [[float(low), float(high)] for low, high in outcome.ranges]
                if not all(-math.inf < low <= high < math.inf for low, high in ranges):
                    raise ValueError(f"{name} has no such range")
                outcomes[str(name)] = outcome._replace(ranges=ranges)
        return origin, outcomes

    def _has_features(self, name, outcome):
        """Whether all features of an Outcome exist, as far as their lengths tell."""
        paths = (self.feature_save_dir / key for key in outcome.list_keys(name))
        return all(path.exists() and path.stat().st_size == outcome.n_bytes for path in paths)

    def save(self, origin, outcomes):
        """Write the file anew, sorted by name."""
        lines = [json.dumps(origin)]
        lines += [json.dumps([name, *outcome]) for name, outcome in sorted(outcomes.items())]
        write_atomically(self.path, "".join(f"{line}\n" for line in lines).encode())

    def add(self, name, outcome):
        """Append a line."""
        with open(self.path, "a") as file:
            file.write(json.dumps([name, *outcome]) + "\n")

    def remove_other_features(self, keys):
        """Delete all features but those of the keys, and what interrupted runs left behind.

        Folders that this leaves empty are deleted, too.
        """
        changed = set()  # folders that something was deleted from
        for prefix, folder, subfolders, names in walk(self.feature_save_dir, topdown=False):
            for path in (Path(folder, name) for name in subfolders):
                if path.is_symlink():
                    raise UserError(f"{path} is a link to elsewhere: remove it, or name another")
                if path in changed:
                    with contextlib.suppress(OSError):  # it is not empty
                        path.rmdir()
                        changed.add(Path(folder))
            for name in names:
                is_kept = not FEATURE_NAME.fullmatch(name) or prefix + name in keys
                if not is_kept or TEMPORARY_NAME.fullmatch(name):
                    Path(folder, name).unlink(missing_ok=True)
                    changed.add(Path(folder))


def note_gone(audio_files_dir, outcomes, stamps):
    """Say which tracks of earlier runs are gone, whose features stay.

    Args:
        outcomes: {name: Outcome} of earlier runs.
        stamps: see Journal.begin.
    Raises:
        UserError: it is all of them, as on a disk that is not mounted, or in another collection.
    """
    recorded = sorted(name for name, outcome in outcomes.items() if outcome.ranges)
    gone = [name for name in recorded if name not in stamps]
    if gone and len(gone) == len(recorded):
        raise UserError(
            f"none of the {len(gone)} tracks with features is in {audio_files_dir} (first: "
            f"{gone[0]}): mount or restore them, name another --saved_data, or add --force to make "
            "the features anew from what is there"
        )
    if gone:
        print(
            f"note: {len(gone)} of {len(recorded)} tracks are gone from {audio_files_dir} (first: "
            f"{make_printable(gone[0])}); their features stay, unless you add --force",
            file=sys.stderr,
        )


def collect_min_max_values(outcomes):
    """{key: {"min": dB, "max": dB}} of {name: Outcome}.

    The dicts are rebuilt here: pickle memoises identical, not equal, strings, and the file must
    not depend on which process made them.
    """
    return {
        key: {"min": low, "max": high}
        for name, outcome in outcomes.items()
        for key, (low, high) in zip(outcome.list_keys(name), outcome.ranges, strict=True)
    }
