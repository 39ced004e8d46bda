"""What a sweep shows on a terminal while it runs: the study's models and budgets, and the time left."""

import contextlib
import time
from collections.abc import Collection, Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.study import search
from pipeline.study.run_files import DIVERGED, FINISHED, UNFINISHED, Run, Trial
from pipeline.study.search import Study

_REFRESHES_PER_SECOND = 1
_FILE_WIDTH = 120  # characters, where stderr is no terminal


class LiveTable:
    """The table of a sweep, kept up to date below what the sweep says.

    Attributes:
      runs: of the study so far.
      running: what runs now.
      left: the time left, in words.
    """

    def __init__(self, study: Study, runs: Sequence[Run]):
        self.runs = runs
        self.running: Collection[Trial] = ()
        self.left = "time left unknown"
        self._study = study
        self._start = time.monotonic()
        console = Console(stderr=True)
        self._console = console if console.is_terminal else Console(stderr=True, width=_FILE_WIDTH)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the table within, where stderr is a terminal."""
        if not self._console.is_terminal:
            yield
            return
        with Live(
            get_renderable=self._table, console=self._console, refresh_per_second=_REFRESHES_PER_SECOND, transient=True
        ):
            yield

    def say_result(self) -> None:
        """Writes the table of what is done, to stay."""
        self.running, self.left = (), "none left"
        self._console.print(self._table(), crop=False)

    def say(self, message: str) -> None:
        """Writes a line that stays above the table."""
        self._console.print(message, soft_wrap=True, markup=False, highlight=False)

    def _table(self) -> Group:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return table(self._study, self.runs, self.running, f"{minutes}:{seconds:02} gone, {self.left}")


def table(study: Study, runs: Sequence[Run], running: Collection[Trial], times: str) -> Group:
    """A line of times, and a row for each model, a column for each budget: the lowest loss, its rate, what runs.

    Args:
      study: the study.
      runs: its runs so far; those that are not over do not count.
      running: trials that run now.
      times: the time gone and the time left, in words.
    """
    done = {run.trial: run for run in runs if run.status != UNFINISHED}
    total = len(done) + len(list(search.remaining(study, runs)))
    grid = Table("")
    columns = sorted({epochs for _, epochs in study.grid})
    for epochs in columns:
        grid.add_column(f"{epochs:g} epochs")
    states = search.searches(study, runs)
    for family in study.members:
        for model in family.variants:
            texts = [
                _cell((model, epochs), states.get((model, epochs)), done.values(), running)
                if epochs in study.budgets(family)
                else ""
                for epochs in columns
            ]
            grid.add_row(model, *texts)
        grid.add_section()
    line = f"{study.directory}: {len(done)} of about {total} runs, {times}"
    return Group(Text(line, no_wrap=True, overflow="ignore"), grid)


def _cell(
    cell: tuple[str, float], state: search.Search | None, runs: Collection[Run], running: Collection[Trial]
) -> str:
    now = [trial for trial in running if (trial.variant, trial.epochs) == cell]
    over = [run for run in runs if (run.trial.variant, run.trial.epochs) == cell]
    tried = [run for run in over if not run.trial.task]
    finished = [run for run in tried if run.status == FINISHED]
    parts = []
    if finished:
        best = min(finished, key=lambda run: run.loss)
        parts.append(f"{best.loss:.3f} at {best.trial.learning_rate:g}")
    elif tried:
        parts.append(f"{sum(run.status == DIVERGED for run in tried)} diverged")
    if now:
        parts.append("▸ " + ", ".join(trial.task or f"{trial.learning_rate:g}" for trial in now))
    elif state is None or state.best is None:
        parts.append(f"{len(tried)} tried" if tried else "·")
    elif tasks := {run.trial.task for run in over if run.trial.task}:
        parts.append(f"✓ {', '.join(sorted(tasks))}")
    return " ".join(parts)
