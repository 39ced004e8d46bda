"""A run that trains in bfloat16 evaluates and exports in float32 where its experiment says so, else in bfloat16."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from pipeline import configure, registry
from pipeline.data import augment
from pipeline.serving import client
from pipeline.train import checkpoint, components
from pipeline.train.evaluate import evaluate
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.train import train
from pipeline.train.trained_model import load_model
from tests import record_sets, served_model, tiny_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLASSES = 4


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, examples=32, validation=10, classes=CLASSES)
    return path


def experiment(records, **settings):
    return tiny_runs.experiment(records, epochs=1, precision="mixed_bfloat16", **settings)


def by_hand(records, model_dir, precision) -> float:
    """Held-out loss of the run's last weights, computed in `precision`."""
    tf_keras.mixed_precision.set_global_policy(precision)
    model = load_model(checkpoint.find(str(model_dir)), tiny_runs.TinyNet)
    tf_keras.mixed_precision.set_global_policy("float32")
    losses = []
    for serialized in tf.data.TFRecordDataset(f"{records}/demo-validation.tfrecord-00000-of-00001"):
        fields = tf.train.Example.FromString(serialized.numpy()).features.feature
        view = augment.evaluation_view(tf.constant(fields["image"].bytes_list.value[0]), 32)
        logits = model(augment.normalize(view)[None])[0].numpy().astype(np.float64)
        losses.append(np.log(np.exp(logits).sum()) - logits[fields["label"].int64_list.value[0]])
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("ema_decay", "loop"),
    [
        pytest.param(None, Loop(strategy="one_device"), marks=pytest.mark.slow),
        (0.5, Loop(strategy="one_device")),
        pytest.param(None, Loop(strategy="mirrored", cpu_replicas=2), marks=pytest.mark.slow),
    ],
)
def test_a_bfloat16_run_is_evaluated_and_exported_in_float32(records, tmp_path, ema_decay, loop):
    what = experiment(records, ema_decay=ema_decay, eval_precision="float32")
    context = RunContext(str(tmp_path))
    summary = train(context, what, loop)
    exact, rounded = (by_hand(records, tmp_path, precision) for precision in ("float32", "mixed_bfloat16"))
    assert abs(rounded - exact) > 1e-5 * exact
    assert summary["validation_loss"] == pytest.approx(exact, rel=2e-6)
    assert evaluate(context, what, loop)["loss"] == pytest.approx(exact, rel=2e-6)

    saved = checkpoint.find(str(tmp_path))
    served = load_model(saved, what.create_evaluation_model)
    path = served_model.export(tmp_path / "saved_model", served, classes=saved.facts["class_names"])
    image = record_sets.jpeg(np.random.default_rng(3))
    logits = served(augment.normalize(augment.evaluation_view(tf.constant(image), 32))[None])
    assert served.trunk.compute_dtype == "float32"
    output = client.load(path).signatures["serving_default"](image_bytes=tf.constant([image]))
    np.testing.assert_allclose(output["probabilities"], tf.nn.softmax(logits), rtol=1e-4)


def test_bfloat16_is_a_setting(records, tmp_path):
    """As runs were evaluated that do not name a precision."""
    for precision in (None, "mixed_bfloat16"):
        run = components.assemble(RunContext(""), experiment(records, ema_decay=None, eval_precision=precision), Loop())
        assert run.state.evaluated is run.state.model
        assert run.state.evaluated.trunk.compute_dtype == "bfloat16"


def test_evaluation_without_average_takes_no_memory_of_its_own(records):
    state = components.assemble(
        RunContext(""), experiment(records, ema_decay=None, eval_precision="float32"), Loop(strategy="one_device")
    ).state
    assert state.evaluated is not state.model
    pairs = list(zip(state.evaluated.variables, state.model.variables, strict=True))
    assert all(evaluated is trained for evaluated, trained in pairs) and len(pairs) == 8
    assert (state.model.trunk.compute_dtype, state.evaluated.trunk.compute_dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize("file", ["f7_jft", "f7plus_imagenet", "f0_imagenet_scratch", "quickstart_finetune"])
def test_every_recipe_evaluates_in_float32(file):
    """And its bindings say so, so that a run made before does not continue with another evaluation unnoticed."""
    bindings = registry.bindings([str(ROOT / f"gin/{file}.gin")], [])
    assert bindings["Experiment.eval_precision"] == "'float32'"
    bindings = registry.bindings([str(ROOT / f"gin/{file}.gin")], ['EVAL_PRECISION="mixed_bfloat16"'])
    assert bindings["Experiment.eval_precision"] == "'mixed_bfloat16'"
    setup = configure.get("Experiment")()
    assert dataclasses.replace(setup, eval_precision=None).precision == setup.precision
