"""What a run leaves, compared with what another one leaves."""

import json

import numpy as np

from pipeline import report
from pipeline.train import checkpoint


def result(model_dir):
    """All that a run leaves, but for times: every variable of its last checkpoint, its metrics, its summary."""
    saved = checkpoint.latest(str(model_dir / "checkpoints"))
    arrays = {
        f"{g}/{k}": v for g in ("model", "optimizer", "ema", "ledger") for k, v in checkpoint.arrays(saved, g).items()
    }
    summary = json.loads((model_dir / "run.json").read_text())
    summary = {name: value for name, value in summary.items() if name not in ("seconds", "images_per_second")}
    best = checkpoint.latest(str(model_dir / "best"))
    return saved.step, arrays, metrics(model_dir), summary, best and best.step


def metrics(model_dir):
    """The lines of `metrics.jsonl`, but for the time that training took so far."""
    return [
        {name: value for name, value in line.items() if name != "seconds"}
        for line in report.read_metrics(str(model_dir))
    ]


def assert_same(model_dir, other, ignore=()):
    """`ignore` are names in the summaries."""
    (step, arrays, lines, summary, best), expected = result(model_dir), result(other)
    assert (step, best) == (expected[0], expected[4])
    assert {**summary, **dict.fromkeys(ignore)} == {**expected[3], **dict.fromkeys(ignore)}
    assert lines == expected[2]
    assert arrays.keys() == expected[1].keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(value, expected[1][name], err_msg=name)
