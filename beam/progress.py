"""The line that tells how far a build is: images done and listed, rate and time left."""

import contextlib
import sys
import threading
import time

_lock = threading.Lock()
_done = 0
_listed = 0


def count(images: int) -> None:
    """Counts images that are finished (written or refused) in this process."""
    global _done
    with _lock:
        _done += images


def listed(images: int) -> None:
    """Counts images that were found in the source by this process."""
    global _listed
    with _lock:
        _listed += images


@contextlib.contextmanager
def shown(every: float | None = None, stream=None):
    """Shows the counts on `stream` (standard error) every so many seconds while the block runs.

    By default twice a second on a terminal, in place, and every 5 seconds in a log, a line each. The counts
    are this process's own: they stay silent where a runner works in other processes.
    """
    global _done, _listed
    stream = stream or sys.stderr
    terminal = stream.isatty()
    every = every or (0.5 if terminal else 5.0)
    _done = _listed = 0
    start, finished = time.monotonic(), threading.Event()

    def show():
        while not finished.wait(every):
            if _listed:
                line = _line(_done, _listed, time.monotonic() - start)
                print(f"\r\x1b[K{line}" if terminal else line, end="" if terminal else "\n", file=stream, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
        if terminal and _listed:
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
