"""Hooks of this process: after a fork, and at exit. Registered when the library is imported.

Modules append their functions to `in_child` and `at_exit` when they are loaded, so nothing is loaded for the
hooks alone.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

FIRST: Final = os.getpid()
"""The pid that imported the library; processes forked from it print nothing."""

in_child: Final[list[Callable[[], None]]] = []
"""Functions to call, in this order, in a forked child."""

at_exit: Final[list[Callable[[], None]]] = []
"""Functions to call, in this order, at the end of the process, after the user's own exit functions."""

# A fork waits so long for modules that are being loaded, then goes on: it must never hang.
_PATIENCE_S: Final = 10.0

_load_lock = threading.RLock()
_held = False


@contextmanager
def loading() -> Iterator[None]:
    """Keep other threads from forking while the block runs: a module would stay half-loaded in the child."""
    with _load_lock:
        yield


def let_forks_wait() -> None:
    """Let forks wait, from now on, while modules are loaded. To be called once, after logging was imported.

    Hooks before a fork run in the reverse order of their registration, so ours runs before that of logging. Otherwise
    the fork would hold the lock of logging and wait for the thread that loads, which waits for that lock in turn.
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
