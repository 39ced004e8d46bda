"""The line that tells how far a build is: images done and listed, rate and time left."""

import contextlib
import sys
import threading
import time

_counts = {"listed": 0, "done": 0}  # without a lock: a lost update only bends the line, and locks cannot be sent


def count(what: str, images: int) -> None:
    """Counts images that this process has `listed` in the source, or has `done` (written or refused)."""
    _counts[what] += images


@contextlib.contextmanager
def shown(every: float | None = None, stream=None):
    """Shows the counts on `stream` (standard error) every so many seconds while the block runs.

    By default twice a second on a terminal, in place, and every 5 seconds in a log, a line each. The counts
    are this process's own: they stay silent where a runner works in other processes.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    every = every or (0.5 if terminal else 5.0)
    _counts.update(listed=0, done=0)
    start, finished = time.monotonic(), threading.Event()

    def show():
        while not finished.wait(every):
            if _counts["listed"]:
                line = _line(_counts["done"], _counts["listed"], time.monotonic() - start)
                print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=stream, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        if terminal and _counts["listed"]:
            print("\r\x1b[K", end="", file=stream, flush=True)


def _line(done: int, listed: int, seconds: float) -> str:
    if not done:
        return f"records: {listed:,} images listed"
    rate = done / seconds
    left = (listed - done) / rate
    return (
        f"records: {done:,} of {listed:,} images ({done / max(listed, 1):.0%}), "
        f"{rate:,.0f} images/s, {int(left) // 60}:{int(left) % 60:02d} left"
    )
