"""The line that tells how far a build is."""

import io
import time

from beam import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_counts_rate_and_time_left_in_place():
    stream = Terminal()
    with progress.shown(lambda: 0, stream, every=0.05):
        progress.count("listed", 1000)
        progress.count("done", 250)
        time.sleep(0.3)
    shown = stream.getvalue()
    assert "records:  25%" in shown and "250/1000" in shown and "images/s" in shown
    assert "\n" not in shown and shown.endswith("\r"), "the line is rewritten in place, and gone at the end"


def test_a_log_gets_a_line_each_time():
    stream = io.StringIO()
    with progress.shown(lambda: 0, stream, every=0.05):
        progress.count("listed", 200)
        progress.count("done", 50)
        time.sleep(0.3)
    lines = stream.getvalue().splitlines()
    assert len(lines) > 1 and all("records:  25%" in line and "50/200" in line for line in lines)
    assert "\r" not in stream.getvalue()


def test_shards_are_counted_where_another_process_does_the_work():
    stream = io.StringIO()
    with progress.shown(lambda: 7, stream, every=0.02):
        time.sleep(0.3)
    assert "records: 7 shards" in stream.getvalue()


def test_a_short_build_in_a_log_says_nothing():
    stream = io.StringIO()
    with progress.shown(lambda: 0, stream):
        progress.count("listed", 10)
    assert stream.getvalue() == ""
