"""SIGTERM ends a command as Ctrl-C does: nothing half-written stays, and work that can be continued is kept."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

TERMINATED = 143  # the exit code, 128 + SIGTERM


@contextmanager
def interrupt_on_sigterm() -> Generator[list[int]]:
    """Raise KeyboardInterrupt in the block when SIGTERM arrives; yields a list, which then holds the signal's number.

    A program around this one that handles or ignores SIGTERM goes on doing so.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    in_main_thread = threading.current_thread() is threading.main_thread()  # no other may set a handler
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield received
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
