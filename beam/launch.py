"""Runs the build: checks, the Beam job with its progress line, and what to say at the end."""

import logging
import os
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

from beam import ingest, options, progress, worker_code
from beam.dry_run import dry_run
from beam.errors import BuildError
from beam.options import BuildOptions
from beam.sources import registry
from beam.sources.source import Source
from pipeline import files
from pipeline.data import manifest


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
    for name, split in manifest.read(build.output_dir).splits.items():
        reasons = ", ".join(f"{count} {reason}" for reason, count in split.rejected.items())
        refused = f", {split.listed - split.written:,} refused ({reasons})" if reasons else ""
        print(f"{name}: {split.written:,} of {split.listed:,} images written{refused}")
    print(f"{build.output_dir}/manifest.json is written; {time.monotonic() - start:.1f} s.")
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
        ingest.build(pipeline, build, source)
        files.make_folder(build.output_dir)
        previous = os.path.join(build.output_dir, manifest.FILE)
        if tf.io.gfile.exists(previous):
            tf.io.gfile.remove(previous)  # from here until the new one, there is no record set
        try:
            with progress.shown(lambda: len(tf.io.gfile.glob(f"{build.output_dir}/{build.name}-*.tfrecord-*.json"))):
                pipeline.run().wait_until_finish()
        except ImportError as error:
            raise BuildError(f"This runner needs more than is installed: {error}.") from error
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if message := re.search(r"BuildError: (.*?)(?: \[while running|\n|$)", text):
                raise BuildError(message[1]) from error
            raise


def _source(build: BuildOptions) -> Source:
    return registry.open_source(build.input, {flag: getattr(build, flag) for flag in registry.flags()})


def _prepare_runner(parsed: PipelineOptions, folder: str) -> FnApiRunner | None:
    """Beam's in-memory and multi-processing runner for local work, else None: Beam makes the one that a flag names.

    Either way the workers get this project's code.
    """
    if (parsed.view_as(StandardOptions).runner or "").lower() in ("", "directrunner", "direct"):
        worker_code.share_with_local_processes()
        return FnApiRunner()
    worker_code.send(parsed, folder)
    return None
