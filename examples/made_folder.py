"""A folder of generated images that is whole or does not exist, and the processes that fill it."""

import concurrent.futures
import json
import multiprocessing
import pathlib
import shutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tqdm import tqdm


def make(
    folder: pathlib.Path, marker: str, description: Mapping[str, Any], fill: Callable[[pathlib.Path], None]
) -> None:
    """Calls `fill` on an empty `FOLDER.partial`, which takes its final name when it is full; or finds the folder made.

    Args:
      folder: to make.
      marker: file name in it that holds `description` as JSON.
      description: what is made; the same one gives the same bytes.
      fill: writes all but the marker.

    Raises:
      ValueError: the folder holds something else, or was made by another description.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = json.loads((folder / marker).read_text()) if (folder / marker).exists() else f"no {marker}"
        if found != description:
            raise ValueError(
                f"{folder} holds {found}, not the images asked for, {dict(description)}: "
                "remove that folder or name another with --output_dir."
            )
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    fill(partial)
    (partial / marker).write_text(json.dumps(description, indent=2) + "\n")
    partial.rename(folder)


def in_processes(
    function: Callable[..., int], tasks: Iterable[tuple], images: int, name: str, processes: int | None = None
) -> None:
    """Calls a function with the arguments of each task, in processes; it returns how many of the `images` it made."""
    # Fresh interpreters, not forks: the caller may have threads of its own.
    with (
        concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool,
        tqdm(total=images, unit=" images", desc=name) as progress,
    ):
        pending = [pool.submit(function, *task) for task in tasks]
        for done in concurrent.futures.as_completed(pending):
            progress.update(done.result())
