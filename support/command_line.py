"""What the scripts' command lines have in common.

In:  the text of a flag; a script's main.
Out: a parser; a number in its range; one line on stderr and an exit status if something is wrong.

    parser.add_argument("--jobs", type=number(int, -1))
"""

import argparse
import errno
import signal as signals
import sys

from support.errors import UserError
from support.files import make_printable

NO_ROOM = ": make room there and start again, what is done stays"
NO_WRITING = ": allow this, or name another folder"
REMEDIES = {  # for what the operating system refuses
    errno.ENOSPC: NO_ROOM,
    errno.EDQUOT: NO_ROOM,
    errno.EROFS: NO_WRITING,
    errno.EACCES: NO_WRITING,
    errno.EPERM: NO_WRITING,
}


def make_parser(docstring):
    """A parser whose --help shows a script's first line, and every flag with its default."""
    return argparse.ArgumentParser(
        description=docstring.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


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


def run_script(main, after_ctrl_c="what is written stays"):
    """Run a script's main; what the user can mend becomes one line on stderr and exit status 1.

    Everything else keeps its traceback: it is a mistake in the code.

    Args:
        after_ctrl_c: what the line says after an interruption.
    """
    try:
        main()
    except (OSError, UserError) as error:
        remedy = REMEDIES.get(getattr(error, "errno", None), "")
        sys.exit(f"error: {make_printable(' '.join(str(error).split()))}{remedy}")
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {after_ctrl_c}")
    finally:  # what remains is Python's own exit, which is short, and tidies up
        signals.signal(signals.SIGINT, signals.SIG_IGN)
