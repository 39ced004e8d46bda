"""What `tpu_check` shows: a line for each stage while the compiler runs, and the estimate as tables."""

import contextlib
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from pipeline.tpu import compiler
from pipeline.tpu.estimate import Estimate, StepTime
from pipeline.tpu.program import ArgumentBytes
from pipeline.tpu.rehearsal import Rehearsal

WIDTH = 120  # where the output is no terminal


@contextlib.contextmanager
def stage(title: str, console: Console | None = None) -> Iterator[None]:
    """Shows `title` and the time it takes for as long as the context lasts."""
    console = console or Console(stderr=True)
    if not console.is_terminal:  # where rich shows the end alone
        console.print(f"{title} ...", highlight=False, soft_wrap=True)
    columns = SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=1)
        yield
        progress.update(task, completed=1)


def show_rehearsal(rehearsal: Rehearsal, console: Console | None = None) -> None:
    """Prints what each check found, what the input must deliver, and whether the run would start."""
    console = _wide(console)
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for finding in rehearsal.findings:
        table.add_row("[green]✓[/]" if finding.passes else "[red]✗[/]", finding.what, escape(finding.found))
    if demand := rehearsal.demand:
        table.add_row("", "Loop", f"{_count(demand.steps_per_loop, 'step')}")
        table.add_row(
            "",
            "Input",
            f"each host must deliver {demand.images_per_second:,.0f} images/s, {demand.bytes_per_second / 1e6:,.0f} MB "
            "of pixels per second",
        )
    console.print(table)
    console.print("The first step would be taken." if rehearsal.starts else "The run would end before its first step.")


def _wide(console: Console | None) -> Console:
    console = console or Console()
    if not console.is_terminal:
        console.width = WIDTH
    return console


def show_report(numbers: Mapping[str, float | str], console: Console | None = None) -> None:
    """Prints the numbers of a run beside its estimate, as Markdown that can be sent."""
    console = console or Console()
    for name, value in numbers.items():
        console.print(
            f"- {name}: {value if isinstance(value, str) else f'{value:,.4g}'}", highlight=False, soft_wrap=True
        )


def show(estimate: Estimate, advice: list[str], console: Console | None = None) -> None:
    """Prints the estimate, and what to change where the step does not fit."""
    console = _wide(console)
    if other := compiler.untested(estimate.provenance.versions):
        console.print(f"Untested versions: {other}.", style="yellow")
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(estimate):
        table.add_row(name, text)
    console.print(table)
    if estimate.time:
        console.print(_most_expensive(estimate.time))
    for line in advice:
        console.print(f"• {line}", highlight=False)


def _rows(estimate: Estimate) -> list[tuple[str, str]]:
    work, place, time, cost = estimate.workload, estimate.placement, estimate.time, estimate.cost
    rows = [
        (
            "Step",
            f"{work.model}, {work.parameters / 1e6:,.1f}M parameters, {work.train_size} pixels, {work.classes:,} "
            f"classes, {work.precision}",
        ),
        (
            "Replica",
            f"{work.replica_batch} images on {_count(place.cores_per_replica, 'core')} of {place.topology} "
            f"({place.chip_config}), compiled for {_count(place.replicas, 'replica')}",
        ),
        ("Memory", _memory(estimate)),
        ("State", _state(estimate.arguments)),
        ("Largest batch", _largest(estimate)),
    ]
    if time is None or cost is None:
        return [*rows, ("Compiler", estimate.fit.reason)]
    return [
        *rows,
        (
            "Step time",
            f"{time.step_seconds * 1e3:,.2f} ms ({time.estimated_cycles / 1e6:,.2f}M cycles by the compiler, "
            f"{time.collective_cycles / 1e6:,.2f}M of waiting for collectives); by FLOPs alone "
            f"{time.flops_bound_seconds * 1e3:,.3g} ms, by HBM traffic alone {time.hbm_bound_seconds * 1e3:,.3g} ms",
        ),
        ("Work", f"{time.flops / 1e12:,.3g} TFLOP, {time.hbm_bytes_accessed / 1e9:,.3g} GB of HBM traffic"),
        ("Speed", f"{time.images_per_second_per_core:,.1f} images/s per core, {time.mfu:.1%} of peak (MFU)"),
        ("Collectives", _collectives(time)),
        (
            "Whole run",
            f"{work.steps:,} steps, {work.images:,.0f} images: {_number(cost.core_hours)} core-hours, "
            f"{_number(cost.chip_hours)} chip-hours, ${_number(cost.dollars)} ({estimate.provenance.price_source})",
        ),
        (
            "Compiled",
            f"in {estimate.provenance.compile_seconds:.0f} s by "
            f"{', '.join(map(' '.join, estimate.provenance.versions.items()))}",
        ),
    ]


def _memory(estimate: Estimate) -> str:
    parts = {}
    if memory := estimate.compiled_memory:
        parts = {
            "arguments": memory.argument_bytes,
            "temporaries": memory.temporary_bytes,
            "results": memory.output_bytes,
            "code": memory.code_bytes,
        }
    fit = estimate.fit
    needed = _size(fit.needed_bytes) if fit.needed_bytes else "more"
    return f"{'fits' if fit.fits else 'DOES NOT FIT'}: {needed} of {_size(fit.hbm_bytes)}{_listed(parts)}"


def _state(arguments: ArgumentBytes) -> str:
    """What stays in a replica's memory, by kind."""
    parts = {
        "parameters": arguments.parameter_bytes,
        "average": arguments.average_bytes,
        "optimiser": arguments.optimizer_bytes,
        "others": arguments.other_bytes,
    }
    return f"{_size(arguments.state_bytes)} per replica{_listed(parts)}; its batch {_size(arguments.batch_bytes)}"


def _listed(parts: Mapping[str, int]) -> str:
    """Sizes that are not 0, in brackets; '' if there are none."""
    listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    return f" ({listed})" if listed else ""


def _collectives(time: StepTime) -> str:
    """What the collectives move, by kind; 'none' for one replica."""
    moved = (
        f"{each.count} {each.kind} of {_size(each.size)}, {each.cycles / 1e6:,.2f}M cycles" for each in time.collectives
    )
    return "; ".join(moved) or "none"


def _largest(estimate: Estimate) -> str:
    batch = estimate.largest_batch.largest_replica_batch
    if batch is None:
        return "unknown; --search finds it"
    verified = estimate.largest_batch.largest_is_verified
    source = "compiled" if verified else "predicted from this compilation; --search verifies"
    return f"{batch} images per replica ({source})"


def _most_expensive(time: StepTime) -> Table:
    table = Table(title="Most expensive", title_justify="left", box=None, pad_edge=False)
    table.add_column("share", justify="right")
    table.add_column("k cycles", justify="right")
    table.add_column("ops", justify="right")
    table.add_column("operation")
    table.add_column("from", overflow="fold")
    for line in time.most_expensive:
        share = f"{line.cycles / time.estimated_cycles:.1%}"
        table.add_row(share, f"{line.cycles / 1e3:,.0f}", str(line.instructions), line.kind, line.source)
    return table


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def _number(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 10 else f"{amount:.2g}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
