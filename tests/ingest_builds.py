"""Whole builds in the tests' own process, and what they left."""

import json
import os

import pytest
import tensorflow as tf

from beam import launch
from pipeline.data import manifest, record, shard


def build(source, output, *flags: str) -> manifest.Manifest:
    """Runs the job in this process; it must succeed. Two shards, unless a flag says otherwise."""
    assert launch.main([f"--input={source}", f"--output_dir={output}", "--shards=2", *flags]) == 0
    return manifest.read(str(output))


def failure(capsys: pytest.CaptureFixture, *flags: str) -> str:
    """Runs the job in this process; it must fail. Returns its message."""
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(launch.main(list(flags)))
    assert stop.value.code in (1, 2)
    return capsys.readouterr().err


def records(output, split: str) -> list[dict]:
    """Every record of a split, read through manifest, index and parser."""
    record_set = manifest.read(str(output))
    rows = []
    for part in record_set.split(split).shards:
        path = os.path.join(output, part.file)
        index = shard.read_index(path, part.examples)
        data = shard.read_records(path, index, 0, part.examples)
        if data:
            names = [f"{part.file}:{i}" for i in range(len(data))]
            columns = record.parse(tf.constant(data), tf.constant(names), record_set.label_kind)
            columns = {k: (v.to_list() if hasattr(v, "to_list") else v.numpy().tolist()) for k, v in columns.items()}
            rows += [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return rows


def refusals(output) -> dict[str, str]:
    """Key to reason, from rejected.jsonl."""
    with open(os.path.join(output, "rejected.jsonl")) as file:
        return {row["key"]: row["reason"] for row in map(json.loads, file)}
