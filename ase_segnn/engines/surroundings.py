"""Surroundings of an evaluation: other threads, forked processes, and modes of torch.

A forked process lacks the threads of its parent, and g++'s OpenMP waits for them for ever if the parent has used
OpenMP. A Python thread started after the fork gets new OpenMP threads. Modes of torch, such as `torch.inference_mode`
and autocast, hold for one thread. So a thread of our own solves both: see `undisturbed`.
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
    """Whether this process was forked from another, as far as the system tells."""
    with suppress(OSError, ValueError, IndexError):
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return bool(int(fields[_FLAGS]) & _FORKED_WITHOUT_EXEC)
    return False


class _Process:
    """State of this process.

    Attributes
    ----------
    forked : whether it was forked without starting another program
    own_thread : thread for `undisturbed`, once needed
    """

    forked = _is_forked()
    own_thread: ThreadPoolExecutor | None = None


class Lock:
    """A lock that is free in a forked process, even if a thread of the parent held it.

    Write ``with lock.now:``. The thread that held the lock does not exist in a forked process, so nobody could free it.

    Attributes
    ----------
    now : reentrant lock of this process
    """

    _all: ClassVar[weakref.WeakSet[Lock]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.free()
        self._all.add(self)

    def free(self) -> None:
        """Replace the lock by a free one."""
        self.now = threading.RLock()

    @classmethod
    def free_all(cls) -> None:
        """Free all locks; only for a process that has one thread."""
        for lock in cls._all:
            lock.free()


_creation = Lock()


def _after_fork() -> None:
    _Process.forked, _Process.own_thread = True, None
    Lock.free_all()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def threads_may_run() -> bool:
    """Whether OpenMP loops may use several threads in the current thread, without waiting for lost ones."""
    return not _Process.forked or threading.current_thread().name.startswith(_NAME)


def undisturbed(function: Callable[[], _Result], *, torch_matters: bool = True) -> _Result:
    """Call a function in a thread where OpenMP works and torch is in its usual mode.

    The function runs in the current thread, unless the process was forked, or inference mode or autocast is on.
    Inference mode allows no gradients, and autocast changes the precision of matrix products.

    Parameters
    ----------
    function : without arguments
    torch_matters : whether the function depends on torch's mode
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
