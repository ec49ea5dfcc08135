"""What the interpreter tells this process: it was forked, it ends. Registered when the library is imported.

What is called then registers itself when it is loaded: to know of a fork or of the end, nothing else has to be loaded.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

FIRST: Final = os.getpid()
"""The process that imported the library; those that it forks tell the user nothing."""

in_child: Final[list[Callable[[], None]]] = []
"""Called in this order in a forked child."""

at_exit: Final[list[Callable[[], None]]] = []
"""Called in this order at the end of the process, after the exit functions of its user."""

# A fork that waits longer than that for modules to be loaded goes on without: it must never hang.
_PATIENCE_S: Final = 10.0

_load_lock = threading.RLock()
_held = False


@contextmanager
def loading() -> Iterator[None]:
    """While the block runs, no other thread forks: a module that is half loaded would stay so in the child for ever."""
    with _load_lock:
        yield


def let_forks_wait() -> None:
    """From now on a fork waits while modules are loaded. Call it once, when filelock is loaded.

    The hooks before a fork are called the last one first: if filelock's had taken its lock before, a thread that loads
    and collects garbage meanwhile could wait for that lock, and the fork for the thread.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent)


def _before_fork() -> None:
    global _held
    _held = _load_lock.acquire(timeout=_PATIENCE_S)


def _after_in_parent() -> None:
    if _held:
        _load_lock.release()


def _after_in_child() -> None:
    global _load_lock
    _load_lock = threading.RLock()
    for function in in_child:
        function()


def _at_exit() -> None:
    for function in at_exit:
        function()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
