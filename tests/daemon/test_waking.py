"""Waking the daemon's loop from another thread, and from a signal handler that interrupts it anywhere."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from time import monotonic
from types import FrameType
from typing import Any

import pytest

from ml_dash_syncd.waking import Bell

SOON_S = 10.0


def test_a_ring_before_the_wait_ends_it_and_is_heard_once() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    begun = monotonic()
    bell.wait(SOON_S)
    assert monotonic() - begun < SOON_S / 2
    begun = monotonic()
    bell.wait(0.05)
    assert monotonic() - begun >= 0.04


def test_a_ring_of_another_thread_ends_the_wait() -> None:
    bell = Bell()
    ringing = threading.Timer(0.05, bell.ring)
    ringing.start()
    begun = monotonic()
    bell.wait(SOON_S)
    assert monotonic() - begun < SOON_S / 2
    ringing.join()


def test_time_that_is_over_is_no_wait() -> None:
    Bell().wait(-1.0)


def test_a_ring_from_within_the_wait_does_not_hang() -> None:
    """What a signal handler does that comes between two lines of it."""
    bell, lines = Bell(), 0

    def ring(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        lines += 1
        bell.ring()
        return ring

    def wait() -> None:
        sys.settrace(ring)
        try:
            bell.wait(0.01)
        finally:
            sys.settrace(None)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    waiting.join(SOON_S)
    assert not waiting.is_alive()
    assert lines > 3


@pytest.fixture
def bell_of_a_signal() -> Iterator[Bell]:
    bell = Bell()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: bell.ring())
    yield bell
    signal.signal(signal.SIGUSR1, before)


def test_many_signals_do_not_hang_it(bell_of_a_signal: Bell) -> None:
    done = threading.Event()

    def send() -> None:
        for _ in range(2_000):
            os.kill(os.getpid(), signal.SIGUSR1)
        done.set()

    sending = threading.Thread(target=send)
    sending.start()
    while not done.is_set():
        bell_of_a_signal.wait(0.0001)
    sending.join()
