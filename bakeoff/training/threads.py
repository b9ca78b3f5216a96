"""Settings of the process that make training on a processor faster. Call them before torch is imported."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_memory() -> None:
    """Tell glibc to keep freed memory instead of giving it back: large tensors of the next step reuse its pages.

    Without effect where the C library is another one.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, 1 << 30)
    except (OSError, AttributeError):
        return


def give_memory_back() -> None:
    """Return freed memory to the system now, so that the peak of what comes next is its own."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
