"""What becomes of the memory of freed arrays, where the C library is glibc.

In:  a process.
Out: freed arrays kept for the next ones, or returned to the system.

    keep_freed_memory()
"""

import contextlib
import ctypes

# Of glibc's malloc.h: no M_MMAP_MAX, one M_ARENA_MAX; bytes of M_TRIM_THRESHOLD and M_TOP_PAD.
KEPT = {-4: 0, -8: 1, -1: 2**31 - 1, -2: 1 << 28}
RETURNED = {-3: 1 << 22}  # M_MMAP_THRESHOLD, bytes; unset, it grows with every larger array


def keep_freed_memory():
    """Keep freed arrays for the next step; else glibc returns them, and the kernel clears new ones.

    That is up to half of the time of a step. Other systems are left as they are.
    """
    set_options(KEPT)


def return_freed_memory():
    """Return freed arrays to the system, so that an hour of sound takes little more than itself."""
    set_options(RETURNED)


def set_options(options):
    with contextlib.suppress(OSError, AttributeError):
        for parameter, value in options.items():
            ctypes.CDLL("libc.so.6").mallopt(parameter, value)
