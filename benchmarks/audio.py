"""The audio of a folder, for the benchmarks.

In:  a folder of audio.
Out: what a function makes of each file.

    signals = load_all("my_music", make_pipeline(settings).loader.load_whole)
"""

import sys
from pathlib import Path

from support.audio import list_audio_files
from support.errors import UserError


def load_all(audio_files_dir, load):
    """What a function makes of each audio file below a folder; what it cannot read is named.

    Args:
        load: from a path to anything, or to a UserError.
    """
    loaded = []
    for name in list_audio_files(audio_files_dir)[0]:
        try:
            loaded.append(load(Path(audio_files_dir) / name))
        except UserError as error:
            print(f"skipped {name!r}: {error}", file=sys.stderr)
    return loaded
