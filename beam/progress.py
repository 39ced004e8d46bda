"""The line that tells how far a build is: images done and listed, rate and time left."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable

_counts = {"listed": 0, "done": 0}  # without a lock: a lost update only bends the line, and locks cannot be sent


def count(what: str, images: int) -> None:
    """Counts images that this process has `listed` in the source, or has `done` (written or refused)."""
    _counts[what] += images


@contextlib.contextmanager
def shown(committed: Callable[[], int], stream=None):
    """Shows how far the build is on `stream` (standard error) while the block runs.

    Twice a second on a terminal, in place; every 5 seconds in a log, a line each. Where a runner works in other
    processes, this one counts nothing: then it asks `committed` for the number of committed shards, more rarely.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    every = 0.5 if terminal else 5.0
    _counts.update(listed=0, done=0)
    start, finished = time.monotonic(), threading.Event()

    def show():
        turn = 0
        while not finished.wait(every):
            turn += 1
            seconds = time.monotonic() - start
            if _counts["listed"]:
                _print(_line(_counts["done"], _counts["listed"], seconds), stream, terminal)
            elif turn * every % 15 == 0 and (shards := committed()):
                _print(f"records: {shards:,} shards committed in {_clock(seconds)}", stream, terminal)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        if terminal:
            print("\r\x1b[K", end="", file=stream, flush=True)


def _print(line: str, stream, terminal: bool) -> None:
    print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=stream, flush=True)


def _line(done: int, listed: int, seconds: float) -> str:
    if not done:
        return f"records: {listed:,} images listed"
    rate = done / seconds
    return (
        f"records: {done:,} of {listed:,} images ({done / max(listed, 1):.0%}), "
        f"{rate:,.0f} images/s, {_clock((listed - done) / rate)} left"
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
