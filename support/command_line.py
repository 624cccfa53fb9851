"""What the scripts' command lines have in common.

In:  the text of a flag; a script's main.
Out: a parser; a number in its range; one line on stderr and an exit status if something is wrong.

    parser.add_argument("--jobs", type=number(int, -1))
"""

import argparse
import errno
import math
import signal as signals
import sys
from pathlib import Path

from support.errors import UserError
from support.files import make_printable

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NO_WRITING = (errno.EROFS, errno.EACCES, errno.EPERM)


def make_parser(docstring):
    """A parser whose --help shows a script's first line, and every flag with its default.

    Args:
        docstring: of the script; None under python -OO.
    """
    return argparse.ArgumentParser(
        description=(docstring or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )


def number(kind, least, most=None):
    """An argparse type: an int or a float in [least, most]."""

    def parse(text):
        value = kind(text)
        if not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"must be finite, got {text}")
        if not least <= value <= (most if most is not None else value):
            limit = f"{least}..{most}" if most is not None else f"at least {least}"
            raise argparse.ArgumentTypeError(f"must be {limit}, got {text}")
        return value

    parse.__name__ = kind.__name__
    return parse


def folder_path(text):
    """An argparse type: a Path."""
    if not text:  # a shell's variable that is not set
        raise argparse.ArgumentTypeError("must not be empty")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # there is no such user
        raise argparse.ArgumentTypeError(str(error)) from error


def run_script(main, if_interrupted="what is written stays", if_out_of_memory="ask for less"):
    """Run a script's main; what the user can mend becomes one line on stderr and exit status 1.

    Everything else keeps its traceback: it is a mistake in the code.

    Args:
        if_interrupted: what the line says after Ctrl-C, or if the disk is full.
        if_out_of_memory: what it says if the memory does not suffice.
    """
    from threadpoolctl import threadpool_limits

    for stream in (sys.stdout, sys.stderr):  # let them take any name
        if hasattr(stream, "reconfigure"):  # not under pytest
            stream.reconfigure(errors="backslashreplace")
    try:
        # Beside another program, threads of a small product wait for each other far longer than
        # they compute. What is large is computed by TensorFlow or JAX, or in threads of our own.
        with threadpool_limits(1, "blas"):
            main()
    except (OSError, UserError) as error:
        text = f"error: {make_printable(' '.join(str(error).split()))}"
        if getattr(error, "errno", None) in NO_ROOM:
            where = "there" if error.filename else "on the disk and, for --jobs, in /dev/shm"
            text += f": make room {where}; {if_interrupted}"
        if getattr(error, "errno", None) in NO_WRITING:
            text += ": allow this, or name another folder"
        sys.exit(text)
    except KeyboardInterrupt:
        sys.exit(f"interrupted: {if_interrupted}")
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(f"error: this takes more memory than there is: {if_out_of_memory}")
    finally:  # what remains is Python's own exit, which is short, and tidies up
        signals.signal(signals.SIGINT, signals.SIG_IGN)


def is_out_of_memory(error):
    """Whether numpy, TensorFlow or JAX found too little memory, of the machine or of a GPU."""
    names = ("ResourceExhaustedError", "RESOURCE_EXHAUSTED")
    text = f"{type(error).__name__}: {error}"
    return isinstance(error, MemoryError) or any(name in text for name in names)


def show_progress(iterable, total, description):
    """Iterate, and show on a terminal how far it is and the time left.

    Args:
        total: how many values there are.
    """
    from tqdm import tqdm

    return tqdm(iterable, description, total, leave=False, disable=None)
