"""What is done, so that a run which was interrupted goes on where it was.

In:  what came of each audio file.
Out: tracks.jsonl, a line for the features' origin and one for each file that is done.

    tracks, is_restarted = Journal("saved_data/min_max_values/tracks.jsonl").load(origin)
"""

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

from support.dataset import MAX_TABLE_BYTES, check_range, make_key
from support.files import get_boot_id, read_file, write_atomically


class Journal:
    """The file of what is done."""

    def __init__(self, path):
        self.path = Path(path)

    def load(self, origin):
        """What is done, as far as the file is whole.

        Returns:
            ({name: Track}, empty where it has another origin; whether the machine was started
            anew since, so that features may not have reached its disk).
        """
        tracks, boot_id = {}, None
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            # Suppressed is the line that an interruption cut; what it told of is done again.
            first, *lines = read_file(self.path, MAX_TABLE_BYTES).splitlines()
            found, boot_id = json.loads(first)
            for line in lines if found == json.loads(json.dumps(origin)) else ():
                name, tracks[name] = Track.parse(line)
        return tracks, boot_id != get_boot_id()

    def save(self, origin, tracks):
        """Write the file anew, sorted by name."""
        lines = [json.dumps([origin, get_boot_id()])]
        lines += [track.format(name) for name, track in sorted(tracks.items())]
        write_atomically(self.path, "".join(f"{line}\n" for line in lines).encode())

    def add(self, name, track):
        """Add a line."""
        with open(self.path, "a") as file:
            file.write(track.format(name) + "\n")


class Track(NamedTuple):
    """What came of an audio file."""

    stamp: list | None  # its size and time of change; None where it is to be tried again
    n_bytes: int  # of each of its features
    checksums: list  # of its features, CRC-32
    ranges: list  # of [min, max] of each of its features, dB
    reason: str  # why it was skipped, or ""

    @classmethod
    def skip(cls, reason, stamp=None):
        """The Track of a file that gives no features."""
        return cls(stamp, 0, [], [], reason)

    def list_keys(self, name):
        return [make_key(name, segment) for segment in range(len(self.ranges))]

    def format(self, name):
        """The journal's line."""
        return json.dumps([name, *self])

    @classmethod
    def parse(cls, line):
        """(name, Track) of a line; a ValueError where it is no such line."""
        name, *fields = json.loads(line)
        track = cls(*fields)
        kinds = (list | None, int, list, list, str)
        is_track = isinstance(name, str) and all(map(isinstance, track, kinds))
        if not is_track or len(track.checksums) != len(track.ranges):
            raise ValueError("this is no line of a journal")
        for low, high in track.ranges:
            check_range({"min": low, "max": high})
        return name, track
