"""Runs the build: checks, the Beam job with its progress line, and what to say at the end."""

import sys
import tempfile
import time

import tensorflow as tf
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, TestOptions

from beam import ingest, options, output_folder, progress, runners, summary
from beam.dry_run import dry_run
from beam.errors import BuildError
from beam.options import BuildOptions
from beam.sources import registry
from beam.sources.source import Source
from pipeline.data import manifest, statistics


def main(argv: list[str]) -> int:
    """Builds the record set that the flags ask for; returns the exit status."""
    runners.quiet()
    try:
        start = time.monotonic()
        parsed = options.parse(argv)
        build = parsed.view_as(BuildOptions)
        FileSystems.set_options(parsed)  # the source is opened before Beam's pipeline does the same
        if parsed.view_as(TestOptions).dry_run:
            print(dry_run(_source(build), build))
            return 0
        run(parsed)
    except (BuildError, OSError, tf.errors.OpError) as error:
        print(f"build_tfrecords.py: {runners.message(error)}", file=sys.stderr)
        return 1
    made = manifest.read(build.output_dir)
    held_out = bool(build.validation_fraction or build.validation_examples)
    for line in summary.lines(made, statistics.read(build.output_dir), held_out, build.duplicates):
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
        pipeline = runners.pipeline(parsed, folder, BuildError)
        output_folder.complete_exchange(build)
        output = output_folder.choose(build)
        ingest.build(pipeline, build, source, output)
        output_folder.begin(build, output)
        try:
            with progress.shown(lambda: len(tf.io.gfile.glob(f"{output}/{build.name}-*.tfrecord-*.json"))):
                runners.run(pipeline, BuildError)
        except BuildError as error:
            raise BuildError(f"{error}{output_folder.unchanged(build, output)}") from error
        output_folder.finish(build, output)


def _source(build: BuildOptions) -> Source:
    flags = {flag: getattr(build, flag) for flag in registry.flags()}
    source = registry.open_inputs(options.inputs(build), flags, build.splits == "auto")
    for note in source.notes:
        print(note, flush=True)
    return source
