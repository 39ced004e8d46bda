"""What `tpu_check` shows: progress while the compiler works, and the estimate as tables."""

import contextlib
import json
import time

from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.tpu import compiler
from pipeline.tpu.estimate import Estimate

WIDTH = 120  # where nobody watches


class Progress:
    """A line for each stage: a spinner with the time gone by on a terminal, its end elsewhere."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True)

    @contextlib.contextmanager
    def __call__(self, title: str):
        """Shows `title` for as long as the context lasts."""
        start = time.monotonic()
        if self._console.is_terminal:
            columns = SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn()
            with Bar(*columns, console=self._console) as bar:
                task = bar.add_task(title, total=1)
                yield
                bar.update(task, completed=1)
        else:
            self._console.print(f"{title} ...", highlight=False, soft_wrap=True)
            yield
            self._console.print(f"  {time.monotonic() - start:.0f} s", highlight=False)


def as_json(found: Estimate) -> str:
    """The estimate as JSON text."""
    return json.dumps(found.as_dict(), indent=1) + "\n"


def show(found: Estimate, advice: list[str], console: Console | None = None) -> None:
    """Prints the estimate, and what to change where the step does not fit."""
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH
    if other := compiler.untested(found.versions):
        console.print(f"Untested versions: {other}.", style="yellow")
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for name, text in _facts(found):
        facts.add_row(name, text)
    console.print(facts)
    if found.most_expensive:
        console.print(_lines(found))
    for line in advice:
        console.print(f"• {line}", highlight=False)


def _facts(found: Estimate) -> list[tuple[str, str]]:
    rows = [
        (
            "Step",
            f"{found.model}, {found.parameters / 1e6:,.1f}M parameters, {found.train_size} pixels, {found.classes:,} "
            f"classes, {found.precision}",
        ),
        (
            "Replica",
            f"{found.replica_batch} images on {_count(found.cores_per_replica, 'core')} of {found.topology} "
            f"({found.chip_config}, {_count(found.replicas, 'replica')})",
        ),
        ("Memory", _memory(found)),
        ("Largest batch", _largest(found)),
    ]
    if not found.fits:
        return [*rows, ("Compiler", found.refusal.strip().splitlines()[0])]
    return [
        *rows,
        (
            "Step time",
            f"{found.step_seconds * 1e3:,.2f} ms ({found.estimated_cycles / 1e6:,.2f}M cycles); by FLOPs alone "
            f"{found.flops_bound_seconds * 1e3:,.3g} ms, by HBM traffic alone {found.hbm_bound_seconds * 1e3:,.3g} ms",
        ),
        ("Work", f"{found.flops / 1e12:,.3g} TFLOP, {found.hbm_bytes_accessed / 1e9:,.3g} GB of HBM traffic"),
        ("Speed", f"{found.images_per_second_per_core:,.1f} images/s a core, {found.mfu:.1%} of peak (MFU)"),
        (
            "All-reduce",
            f"{found.gradient_bytes / 1e9:,.3g} GB of gradients, at least {found.all_reduce_seconds * 1e3:,.3g} ms; "
            "overlaps with the backward pass, so not counted",
        ),
        (
            "Whole run",
            f"{found.steps:,} steps, {found.images:,.0f} images: {_number(found.core_hours)} core-hours, "
            f"{_number(found.chip_hours)} chip-hours, ${_number(found.dollars)} ({found.price_source})",
        ),
        ("Compiled", f"in {found.compile_seconds:.0f} s by {', '.join(map(' '.join, found.versions.items()))}"),
    ]


def _memory(found: Estimate) -> str:
    parts = {
        "parameters": found.parameter_bytes,
        "average": found.average_bytes,
        "optimiser": found.optimizer_bytes,
        "batch": found.batch_bytes,
        "temporaries": found.temporary_bytes,
        "results": found.output_bytes,
        "code": found.code_bytes,
    }
    listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    needed = _size(found.needed_bytes) if found.needed_bytes else "more"
    return f"{'fits' if found.fits else 'DOES NOT FIT'}: {needed} of {_size(found.hbm_bytes)} ({listed})"


def _largest(found: Estimate) -> str:
    if found.largest_replica_batch is None:
        return "unknown; --search finds it"
    how = "compiled" if found.largest_is_verified else "predicted from this compilation; --search verifies"
    return f"{found.largest_replica_batch} images a replica ({how})"


def _lines(found: Estimate) -> Table:
    table = Table(title="Most expensive", title_justify="left", box=None, pad_edge=False)
    table.add_column("share", justify="right")
    table.add_column("k cycles", justify="right")
    table.add_column("ops", justify="right")
    table.add_column("operation")
    table.add_column("from", overflow="fold")
    for line in found.most_expensive:
        share = f"{line.cycles / found.estimated_cycles:.1%}"
        table.add_row(share, f"{line.cycles / 1e3:,.0f}", str(line.instructions), line.kind, line.source)
    return table


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def _number(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 10 else f"{amount:.2g}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
