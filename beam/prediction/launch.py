"""Runs a batch prediction: checks, the Beam job with its progress line, and what to say at the end."""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import tensorflow as tf
from apache_beam.ml.inference.base import PredictionResult, RunInference
from apache_beam.options.pipeline_options import PipelineOptions

from beam import progress, runners
from beam.errors import PredictionError
from beam.prediction import evaluation, inputs, job, options, rows
from beam.prediction.inference import ShardHandler
from beam.prediction.inputs import Shard
from beam.prediction.job import Job
from beam.prediction.options import PredictionOptions
from pipeline import files
from pipeline.data import manifest, record
from pipeline.serving.servable import FEATURES

_DONE, _OPEN = "done", "open"


def main(argv: list[str]) -> int:
    """Predicts what the flags ask for; returns the exit status."""
    runners.quiet()
    try:
        return _predict(options.parse(argv), time.monotonic())
    except (PredictionError, OSError, tf.errors.OpError) as error:
        print(f"batch_predict.py: {runners.message(error)}", file=sys.stderr)
        return 1


def _predict(parsed: PipelineOptions, start: float) -> int:
    asked = parsed.view_as(PredictionOptions)
    model = job.find_model(asked.saved_model)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = runners.pipeline(parsed, folder, PredictionError)
        task, shards, record_set = _prepare(asked, model)
        build(pipeline, task, shards)
        with progress.shown(lambda: _files_done(task), description="predictions"):
            runners.run(pipeline, PredictionError)
    counts = job.read_summary(task.output)
    print(
        f"{counts.total:,} images: {counts.predicted:,} predicted, {counts.invalid:,} invalid, {counts.dead:,} dead; "
        f"{task.shards:,} files in {task.output}; {time.monotonic() - start:.1f} s."
    )
    if record_set and task.objective:
        page, values = evaluation.report(task, model, record_set, asked.records, asked.split, shards)
        described = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        print(f"{asked.split}, {counts.predicted:,} of {counts.total:,} records: {described}")
        print(f"Report: {page}")
    if counts.dead > asked.max_dead:
        raise PredictionError(
            f"{counts.dead:,} images could not be read, or failed in the model (--max_dead={asked.max_dead}): the "
            f"column `error` says why, where `valid` is null. The same command tries them again."
        )
    return 0


def _prepare(asked: PredictionOptions, model: job.Model) -> tuple[Job, Sequence[Shard], manifest.Manifest | None]:
    """Lists the input and begins the output folder: the job, the shards, and the manifest of records."""
    output = files.absolute(asked.output)
    chosen = {"probabilities": asked.probabilities, FEATURES: asked.features}
    settings = {
        "saved_model": files.absolute(model.path),
        "output": output,
        "format": asked.format,
        "batch_size": asked.batch_size,
        "outputs": tuple(name for name, wanted in chosen.items() if wanted),
    }
    if asked.records:
        record_set, shards = inputs.record_shards(files.absolute(asked.records), asked.split)
        settings |= {"of_records": True, "several_labels": record_set.label_kind == record.MULTI_LABEL}
        if asked.evaluate:
            evaluation.check_classes(model, record_set, asked.records)
            settings["objective"] = model.metadata["activation"]
        task = Job(**settings, shards=len(shards))
        job.begin(output, job.description(task, model, {"records": record_set.digest, "split": asked.split}))
        return task, shards, record_set
    listing = inputs.listing(inputs.image_paths(asked.images))
    path = os.path.join(output, inputs.LISTING)
    shards = inputs.image_shards(listing, path, asked.shard_images)
    task = Job(**settings, shards=len(shards))
    digest = hashlib.sha256(listing).hexdigest()
    job.begin(output, job.description(task, model, {"images": digest, "shard_images": asked.shard_images}))
    files.write_atomically(path, listing, several_writers=True)
    return task, shards, None


def build(pipeline: beam.Pipeline, task: Job, shards: Sequence[Shard]) -> None:
    """Adds the whole job to `pipeline`."""
    listed = (
        pipeline
        | "Shards" >> beam.Create(shards)
        | "List" >> beam.Map(_listed)
        | "Spread" >> beam.Reshuffle()
        | "Skip" >> beam.FlatMap(_skip_done, task).with_outputs(_DONE, _OPEN)
    )
    written = (
        listed[_OPEN]
        | "Predict" >> RunInference(ShardHandler(task).with_no_batching())
        | "Write" >> beam.Map(_write, task)
    )
    (
        (listed[_DONE], written)
        | "All shards" >> beam.Flatten()
        | "Count" >> beam.combiners.ToList()
        | "Finish" >> beam.Map(lambda counts, listed: job.finish(task.output, listed, counts), sum(map(len, shards)))
    )


def _files_done(task: Job) -> int:
    return len(tf.io.gfile.glob(os.path.join(task.output, job.PREDICTIONS, f"*.{task.format}")))


def _listed(shard: Shard) -> Shard:
    progress.count("listed", len(shard))
    return shard


def _skip_done(shard: Shard, task: Job) -> Iterator[Any]:
    """The counts of a shard that is done, without a dead example; else the shard."""
    counts = rows.counts_of(task.path(shard.index))
    if counts and not counts.dead and counts.total == len(shard):
        progress.count("done", len(shard))
        yield beam.pvalue.TaggedOutput(_DONE, counts)
    else:
        yield beam.pvalue.TaggedOutput(_OPEN, shard)


def _write(result: PredictionResult, task: Job) -> rows.Counts:
    """Writes the predictions of a shard, whole or not at all."""
    shard, columns = result.example, result.inference
    content = rows.encode(columns, task.schema, task.format)
    files.write_atomically(task.path(shard.index), content, several_writers=True)
    return rows.count(columns["valid"])
