"""The line that tells how far a build is."""

import io
import time

import pytest

from beam import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_counts_rate_and_time_left_in_place():
    stream = Terminal()
    with progress.shown(lambda: 0, stream):
        progress.count("listed", 1000)
        progress.count("done", 250)
        time.sleep(0.7)
    shown = stream.getvalue()
    assert "records: 250 of 1,000 images (25%)" in shown and "images/s" in shown and "left" in shown
    assert shown.startswith("\r") and shown.endswith("\r\x1b[K") and "\n" not in shown


def test_a_short_build_in_a_log_says_nothing():
    stream = io.StringIO()
    with progress.shown(lambda: 0, stream):
        progress.count("listed", 10)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("done", "listed", "seconds", "line"),
    [
        (0, 7, 3, "records: 7 images listed"),
        (50, 200, 10, "records: 50 of 200 images (25%), 5 images/s, 0:30 left"),
        (100, 6100, 1, "records: 100 of 6,100 images (2%), 100 images/s, 1:00 left"),
    ],
)
def test_the_line(done, listed, seconds, line):
    assert progress._line(done, listed, seconds) == line
