"""Runs the build: checks, the Beam job with its progress line, and what to say at the end."""

import logging
import re
import sys
import tempfile
import time
import warnings

import apache_beam as beam
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions, TestOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam import ingest, options, output_folder, progress, summary, worker_code
from beam.dry_run import dry_run
from beam.errors import BuildError
from beam.options import BuildOptions
from beam.sources import registry
from beam.sources.source import Source
from pipeline.data import manifest, statistics


def main(argv: list[str]) -> int:
    """Builds the record set that the flags ask for; returns the exit status."""
    warnings.filterwarnings("ignore", module="PIL")  # about broken metadata
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)  # logs what it raises too
    logging.getLogger("apache_beam.runners.portability.stager").setLevel(logging.ERROR)  # warns of every wheel
    logging.getLogger().setLevel(logging.WARNING)
    try:
        start = time.monotonic()
        parsed = options.parse(argv)
        build = parsed.view_as(BuildOptions)
        FileSystems.set_options(parsed)  # the source is opened before Beam's pipeline does the same
        if parsed.view_as(TestOptions).dry_run:
            print(dry_run(_source(build), build))
            return 0
        run(parsed)
    except BuildError as error:
        print(f"build_tfrecords.py: {error}", file=sys.stderr)
        return 1
    made = manifest.read(build.output_dir)
    for line in summary.lines(made, statistics.read(build.output_dir)):
        print(line)
    print(f"{build.output_dir}/manifest.json is written; {time.monotonic() - start:.1f} s.")
    print(summary.next_step(made, build.output_dir))
    return 0


def run(parsed: PipelineOptions) -> None:
    """Runs the job and waits for it.

    Raises:
      BuildError: the job could not be done as asked.
    """
    build = parsed.view_as(BuildOptions)
    source = _source(build)
    with tempfile.TemporaryDirectory() as folder:
        runner = _prepare_runner(parsed, folder)
        try:
            pipeline = beam.Pipeline(runner=runner, options=parsed)
        except ValueError as error:  # flags that the runner does not accept
            raise BuildError(str(error).strip()) from error
        output_folder.complete_exchange(build)
        output = output_folder.choose(build)
        ingest.build(pipeline, build, source, output)
        output_folder.begin(build, output)
        try:
            with progress.shown(lambda: len(tf.io.gfile.glob(f"{output}/{build.name}-*.tfrecord-*.json"))):
                pipeline.run().wait_until_finish()
        except ImportError as error:
            raise BuildError(f"This runner needs more than is installed: {error}.") from error
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if message := re.search(r"BuildError: (.*?)(?: \[while running|\n|$)", text):
                raise BuildError(message[1] + output_folder.unchanged(build, output)) from error
            raise
        output_folder.finish(build, output)


def _source(build: BuildOptions) -> Source:
    flags = {flag: getattr(build, flag) for flag in registry.flags()}
    source = registry.open_inputs(options.inputs(build), flags, build.splits == "auto")
    for note in source.notes:
        print(note, flush=True)
    return source


def _prepare_runner(parsed: PipelineOptions, folder: str) -> FnApiRunner | None:
    """Beam's in-memory and multi-processing runner for local work, else None: Beam makes the one that a flag names.

    Either way the workers get this project's code.
    """
    if (parsed.view_as(StandardOptions).runner or "").lower() in ("", "directrunner", "direct"):
        worker_code.share_with_local_processes()
        return FnApiRunner()
    worker_code.send(parsed, folder)
    return None
