"""What the scripts' command lines have in common.

In:  the text of a flag; a script's main.
Out: a number in its range; one line on stderr and an exit status where something is wrong.

    add("--jobs", type=number(int, -1))
"""

import argparse
import errno
import signal as signals
import sys

from support.files import make_printable

NO_ROOM = ": make room there and start again, what is done stays"
NO_WRITING = ": allow this, or name another folder"
REMEDIES = {  # of what the operating system refuses
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EROFS: NO_WRITING,
    errno.EACCES: NO_WRITING,
    errno.EPERM: NO_WRITING,
}


def number(kind, least, most=None):
    """An argparse type: an int or a float in [least, most]."""

    def parse(text):
        value = kind(text)
        if not least <= value <= (most if most is not None else value):
            limit = f"{least}..{most}" if most is not None else f"at least {least}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def exit_with_one_line(main_function, after_ctrl_c="what is written stays"):
    """Run a script's main; expected errors become one line on stderr and exit status 1.

    Args:
        after_ctrl_c: what the line says after an interruption.
    """
    try:
        main_function()
    except (OSError, ValueError) as error:
        remedy = REMEDIES.get(getattr(error, "errno", None), "")
        sys.exit(f"error: {make_printable(' '.join(str(error).split()))}{remedy}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {after_ctrl_c}")
    finally:  # what is left is Python's own end, which is short, and tidies up
        signals.signal(signals.SIGINT, signals.SIG_IGN)
