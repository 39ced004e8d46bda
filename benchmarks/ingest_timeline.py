"""A picture of where the ingest job's time goes: what each thread does, and how busy it is.

    python benchmarks/ingest_timeline.py [--images=6000] [--output=runs/ingest_timeline.png] [-- JOB_FLAGS]

Runs the job in this process on images of `benchmarks/ingest.py`, and looks at every thread 100 times a second: at the
function of this project that it is in, and at the processor time that it has taken. A thread that waits, for work, a
core or Python's lock, is pale. The program's own imports come before and are not shown.
"""

import argparse
import collections
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

logging.getLogger().setLevel(logging.ERROR)  # before Apache Beam imports cloud libraries, and warns
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[0] = ROOT

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from beam import launch
from benchmarks import ingest
from pipeline.figure_style import STYLE

_SECONDS = 0.01  # between two looks
# What a thread does, by the innermost of these files that it is in.
PARTS = {
    "listing and grouping": ("beam/ingest.py", "beam/sources/", "beam/planning.py", "beam/examples.py"),
    "reading and checking": ("beam/checks.py", "beam/images.py", "beam/files.py", "beam/record_files.py"),
    "records, hashes, writing": ("beam/writing.py", "beam/shards.py", "pipeline/data/", "pipeline/files.py"),
    "report and manifest": ("beam/finalize.py", "beam/build_report.py", "beam/summary.py", "pipeline/figure_style.py"),
    "Beam": ("apache_beam",),
}
_COLORS = ("#4477AA", "#228833", "#CCBB44", "#AA3377", "#66CCEE")
_OTHER, _OTHER_COLOR = "other", "#BBBBBB"


class Look(NamedTuple):
    """What a thread did at a second, and the share of a core that it has taken since the look before."""

    second: float
    part: str
    share: float


Looks = dict[str, list[Look]]  # by thread


def watch(over: threading.Event) -> Looks:
    """Looks at the threads of this process until `over`."""
    looks: Looks = collections.defaultdict(list)
    start, own = time.monotonic(), threading.get_ident()
    used: dict[int, tuple[float, float]] = {}
    while not over.wait(_SECONDS):
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for identity, frame in sys._current_frames().items():
            if identity == own or identity not in names:
                continue
            try:
                clock = time.clock_gettime(time.pthread_getcpuclockid(identity))
            except OSError:
                continue  # it has ended meanwhile
            now = time.monotonic()
            before, processor = used.get(identity, (now, clock))
            used[identity] = now, clock
            share = (clock - processor) / (now - before) if now > before else 0.0
            looks[f"{names[identity]} {identity}"].append(Look(now - start, _part(frame), min(share, 1.0)))
    return looks


def _part(frame: FrameType | None) -> str:
    while frame:
        for part, places in PARTS.items():
            if any(place in frame.f_code.co_filename for place in places):
                return part
        frame = frame.f_back
    return _OTHER


def _spans(looks: Sequence[Look]) -> list[tuple[Look, float]]:
    """Each look, and the seconds until the next."""
    ends = [*(look.second for look in looks[1:]), looks[-1].second + _SECONDS]
    return [(look, end - look.second) for look, end in zip(looks, ends, strict=True)]


def draw(looks: Looks, path: str, title: str) -> None:
    """Draws the threads that took a hundredth of the processor time or more; rows are used again."""
    taken = {thread: sum(look.share for look in each) for thread, each in looks.items()}
    threads = [thread for thread in looks if taken[thread] >= 0.01 * sum(taken.values())]
    rows: list[float] = []  # the end of each
    colors = dict(zip(PARTS, _COLORS, strict=True)) | {_OTHER: _OTHER_COLOR}
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(10, 4), layout="constrained")
        for thread in sorted(threads, key=lambda thread: looks[thread][0][0]):
            spans = _spans(looks[thread])
            pieces = [(look.second, seconds) for look, seconds in spans]
            faces = [(*to_rgb(colors[look.part]), 0.12 + 0.88 * look.share) for look, _ in spans]
            start, end = pieces[0][0], sum(pieces[-1])
            row = next((row for row, last in enumerate(rows) if last <= start), len(rows))
            rows[row : row + 1] = [end]
            axes.broken_barh(pieces, (row - 0.4, 0.8), facecolors=faces, linewidth=0)
        axes.set_yticks(range(len(rows)), [f"thread {row + 1}" for row in range(len(rows))])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("seconds since the start of the job; pale where a thread waits")
        axes.set_title(title, loc="left")
        patches = [Patch(color=color, label=part) for part, color in colors.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=3)
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


def describe(looks: Looks) -> str:
    """Processor seconds of each part, as a Markdown table."""
    seconds: dict[str, float] = collections.defaultdict(float)
    for each in looks.values():
        for look, span in _spans(each):
            seconds[look.part] += look.share * span
    lines = ["| part | processor seconds |", "|---|---|"]
    lines += [f"| {part} | {value:.2f} |" for part, value in sorted(seconds.items(), key=lambda item: -item[1])]
    return "\n".join(lines)


def main() -> None:
    """Makes the images, runs the job, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--output", default=os.path.join(ROOT, "runs", "ingest_timeline.png"))
    parser.add_argument("flags", nargs="*", help="flags of the job, after --")
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp()
    try:
        ingest.make_images(f"{folder}/images", arguments.images)
        over, found = threading.Event(), []
        watcher = threading.Thread(target=lambda: found.append(watch(over)))
        watcher.start()
        start = time.monotonic()
        words = [f"--input={folder}/images", f"--output_dir={folder}/set", "--shards=16", *arguments.flags]
        try:
            status = launch.main(words)
        finally:
            over.set()
            watcher.join()
        seconds = time.monotonic() - start
        if status:
            sys.exit(status)
        what = " ".join(["build_tfrecords.py", *arguments.flags])
        os.makedirs(os.path.dirname(os.path.abspath(arguments.output)), exist_ok=True)
        draw(found[0], arguments.output, f"{what}: {arguments.images:,} images in {seconds:.1f} s")
        print(describe(found[0]))
        print(arguments.output)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
