"""Where an evaluation runs: among other threads, in forked processes, in whatever mode torch is.

A process that was forked has none of the threads of its parent, and the OpenMP of g++ waits for them for ever where the
parent has used them. Threads that are started after the fork have threads of their own. Torch's modes, such as
`torch.inference_mode` and autocast, are those of one thread. So a thread of our own is the remedy for both.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, TypeVar

import torch

_Result = TypeVar("_Result")

_FORKED_WITHOUT_EXEC = 0x40  # PF_FORKNOEXEC in Linux's include/linux/sched.h
_FLAGS = 6  # place of the flags after the name of the program, see proc_pid_stat(5)


def _is_forked() -> bool:
    """Whether this process is a copy of another, as far as the system tells."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return bool(int(fields[_FLAGS]) & _FORKED_WITHOUT_EXEC)
    return False


class _Process:
    """What is known of this process."""

    forked = _is_forked()
    own_thread: ThreadPoolExecutor | None = None


class Lock:
    """A lock, to be taken as `now`, that is free in a process that is forked while it is held.

    The thread that held it in the parent does not exist there.

    Attributes
    ----------
    now : lock of this process, which its holder may take again
    """

    _all: ClassVar[weakref.WeakSet[Lock]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.free()
        self._all.add(self)

    def free(self) -> None:
        """Forget who holds it."""
        self.now = threading.RLock()

    @classmethod
    def free_all(cls) -> None:
        """Free all locks of this process, when it has one thread."""
        for lock in cls._all:
            lock.free()


_creation = Lock()


def _after_fork() -> None:
    _Process.forked, _Process.own_thread = True, None
    Lock.free_all()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def threads_may_run() -> bool:
    """Whether loops with several threads of OpenMP may be run here without waiting for threads that are gone."""
    return not _Process.forked or threading.current_thread().name.startswith(_NAME)


def undisturbed(function: Callable[[], _Result], *, torch_matters: bool = True) -> _Result:
    """Call a function in a thread where OpenMP works and torch is in its usual mode: most often this one.

    Usual are gradients that can be asked for, and products of matrices in the precision of their factors.

    Parameters
    ----------
    function : takes nothing
    torch_matters : whether the mode of torch makes a difference to the function
    """
    if threads_may_run() and not (torch_matters and _torch_is_unusual()):
        return function()
    with _creation.now:
        if _Process.own_thread is None:
            _Process.own_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=_NAME)
        own_thread = _Process.own_thread
    return own_thread.submit(function).result()


_NAME = "ase-segnn"


def _torch_is_unusual() -> bool:
    return any((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")))
