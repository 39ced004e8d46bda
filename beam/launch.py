"""Runs the build: checks, the Beam job with its progress line, and what to say at the end."""

import logging
import re
import sys
import time
import warnings

import apache_beam as beam
import tensorflow as tf
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions, TestOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from beam import carry, costs, ingest, options, progress, sources
from beam.options import BuildError, BuildOptions


def main(argv: list[str]) -> int:
    """Builds the record set that the flags ask for; returns the exit status."""
    warnings.filterwarnings("ignore", module="PIL")  # what Pillow thinks of broken metadata
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)  # logs what it raises too
    logging.getLogger().setLevel(logging.WARNING)
    try:
        start = time.monotonic()
        parsed = options.parse(argv)
        build = parsed.view_as(BuildOptions)
        FileSystems.set_options(parsed)  # the source is looked at before Beam's pipeline says the same
        if parsed.view_as(TestOptions).dry_run:
            print(dry_run(build))
            return 0
        summary = run(parsed)
    except BuildError as error:
        print(f"build_tfrecords.py: {error}", file=sys.stderr)
        return 1
    for split, counts in summary.items():
        refused = counts["listed"] - counts["written"]
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts["rejected"].items())
        print(
            f"{split}: {counts['written']:,} of {counts['listed']:,} images written"
            + (f", {refused:,} refused ({reasons})" if refused else "")
        )
    print(f"{build.output_dir}/manifest.json is written; {time.monotonic() - start:.1f} s.")
    return 0


def dry_run(build: BuildOptions) -> str:
    """What the build would cost, as text; see `costs`."""
    source = sources.look(build.input, build.image_feature, build.label_feature)
    count = build.dry_run_images or sum(1 for part in source.parts for _ in sources.items(part, source))
    measured = costs.measure(source, build)
    return costs.text(measured, costs.plan(measured, count, build))


def run(parsed: beam.options.pipeline_options.PipelineOptions) -> dict:
    """Runs the job and waits for it; returns `finish.finish`'s summary.

    Raises:
      BuildError: the job could not be done as asked.
    """
    build = parsed.view_as(BuildOptions)
    source = sources.look(build.input, build.image_feature, build.label_feature)
    try:
        pipeline = beam.Pipeline(runner=_runner(parsed), options=parsed)
    except ValueError as error:  # what the runner thinks of its flags
        raise BuildError(str(error).strip()) from error
    ingest.build(pipeline, build, source)
    tf.io.gfile.makedirs(build.output_dir)
    ingest.remove_manifest(build.output_dir)
    try:
        with progress.shown(lambda: len(tf.io.gfile.glob(f"{build.output_dir}/{build.name}-*.tfrecord-*.json"))):
            pipeline.run().wait_until_finish()
    except ImportError as error:
        raise BuildError(f"This runner needs more than is installed: {error}.") from error
    except Exception as error:
        if found := re.search(r"BuildError: (.*?)(?: \[while running|\n|$)", f"{type(error).__name__}: {error}"):
            raise BuildError(found[1]) from error
        raise
    return finish_summary(build.output_dir)


def finish_summary(output_dir: str) -> dict:
    """The counts of each split, from the manifest."""
    from pipeline.data import manifest

    splits = manifest.read(output_dir).splits
    return {n: {"listed": s.listed, "written": s.written, "rejected": s.rejected} for n, s in splits.items()}


def _runner(parsed):
    """Beam's in-memory and multi-processing runner for local work; whatever else is asked for by its name."""
    local = (parsed.view_as(StandardOptions).runner or "").lower() in ("", "directrunner", "direct")
    carry.stay_in_process(local and parsed.view_as(DirectOptions).direct_running_mode != "multi_processing")
    return FnApiRunner() if local else None
