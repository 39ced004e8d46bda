"""The trainer under the real `tf.distribute.TPUStrategy`, over made-up devices: as far as one comes without a TPU."""

import collections
import contextlib
import dataclasses
import functools
import re

import numpy as np
import pytest
import tensorflow as tf
from official.vision.modeling.backbones import vit

from pipeline.data.augment import Augmentation
from pipeline.data.mixing import Mixing
from pipeline.data.randaugment import RandAugment
from pipeline.evaluation.collector import Collector
from pipeline.model import garden, nfnet
from pipeline.serving import client
from pipeline.sharding import sharded_variable
from pipeline.sharding.sharded_variable import RowShardedVariable
from pipeline.tpu import made_up_devices
from pipeline.train import checkpoint, components, distribution, few_shot, optimizer, starting_point
from pipeline.train.evaluator import Evaluator
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.sam import SAM
from pipeline.train.state import weights_digest
from pipeline.train.step import TrainingStep
from pipeline.train.train import train
from pipeline.train.trained_model import load_model
from pipeline.train.trainer import Trainer
from tests import record_sets, served_model, tiny_runs

HERE = RunContext("nowhere")
TPU = Loop(strategy="tpu", steps_per_loop=2, checkpoint_every=2, shared_folders=True)
ONE_DEVICE = Loop(strategy="one_device", steps_per_loop=2, checkpoint_every=2)
PICO = functools.partial(nfnet.create, "pico", dropout_rate=0.2, stochastic_depth_rate=0.2)
VIT = functools.partial(garden.create, "vit", image_size=32, settings={"model_name": "vit-ti16"})
ADAMW = functools.partial(optimizer.AdamW, weight_decay=0.05)
RECIPES = {
    "pre-training": {"model": PICO, "precision": "mixed_bfloat16", "ema_decay": None},
    "SAM with repeats": {"sam": SAM(), "augmentation": Augmentation(repeats=2)},
    "mixing": {"augmentation": Augmentation(mixing=Mixing(cutmix=False), randaugment=RandAugment(2, 5))},
    "accumulation": {"accumulation_steps": 2, "precision": "mixed_bfloat16"},
    "AdamW with a transformer": {"model": VIT, "optimizer": ADAMW},
    "several labels and a frozen stem": {"loss": "sigmoid", "frozen": ("stem/*",)},
}
PARTS_OF_RECIPES = {
    "averaged weights": {"precision": "mixed_bfloat16"},
    "accumulation in float32": {"accumulation_steps": 2},
    "several labels": {"loss": "sigmoid"},
    "a frozen stem": {"frozen": ("stem/*",)},
}


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path / "single", examples=64, validation=20)
    record_sets.make(path / "multiple", examples=64, validation=20, label_kind="multiple")
    return path


def experiment(records, **recipe):
    return tiny_runs.experiment(records / ("multiple" if "loss" in recipe else "single"), **recipe)


@pytest.fixture
def shallow(monkeypatch):
    """Leaves two layers of the transformer's twelve, which are all alike."""
    spec = vit.VIT_SPECS["vit-ti16"]
    spec = {**spec, "transformer": {**spec["transformer"], "num_layers": 2}}
    monkeypatch.setattr(vit, "VIT_SPECS", {"vit-ti16": spec})


@pytest.fixture
def made_up_tpu():
    """Lets strategy 'tpu' find made-up devices."""
    with contextlib.ExitStack() as stack:
        yield lambda replicas=4, hosts=1: stack.enter_context(made_up_devices.instead_of_a_tpu(replicas, hosts))


def check_what_the_tpu_runs(graph: tf.Graph) -> collections.Counter:
    """Asserts that a TPU's compiler can take it; returns how often each type of operation is there."""
    operations = made_up_devices.on_tpu(graph)
    assert made_up_devices.problems(operations) == []
    return collections.Counter(operation.type for operation in operations)


@pytest.mark.parametrize(
    ("recipe", "hosts"),
    [
        *(pytest.param(recipe, 1, id=name) for name, recipe in RECIPES.items()),
        *(pytest.param(recipe, 1, id=name, marks=pytest.mark.slow) for name, recipe in PARTS_OF_RECIPES.items()),
        pytest.param(RECIPES["accumulation"], 2, id="accumulation on 2 hosts"),
    ],
)
def test_the_training_step_is_what_a_tpu_can_run(records, made_up_tpu, shallow, monkeypatch, recipe, hosts):
    monkeypatch.setattr(sharded_variable, "MIN_VALUES", 64)  # kernels are shared out as those of large models
    made_up_tpu(replicas=4, hosts=hosts)
    what = experiment(records, **recipe)
    run = components.assemble(HERE, what, TPU)
    assert isinstance(run.strategy, tf.distribute.TPUStrategy)
    assert (run.strategy.num_replicas_in_sync, distribution.hosts(run.strategy)) == (4, hosts)
    step = TrainingStep.of(what, run.state, jit_compile=TPU.uses_xla(run.strategy))
    assert not step.jit_compile  # the whole of `strategy.run` is compiled
    trainer = Trainer(what, run, step)
    trainer.train_loop_begin()
    iterator = iter(trainer.train_dataset)
    types = check_what_the_tpu_runs(
        tf.function(trainer.train_step, autograph=False).get_concrete_function(iterator).graph
    )
    model = run.state.model
    shared_out = [v for v in model.trainable_variables if isinstance(v, RowShardedVariable)]
    assert shared_out
    # Each kernel is gathered once, whatever the parts of the batch, and its gradient scattered once.
    assert types["XlaCallModule"] == sum(isinstance(v, RowShardedVariable) for v in model.variables)
    assert types["XlaReduceScatter"] == len(shared_out)
    gradients = len(model.trainable_variables) - len(shared_out)
    statistics = 3 * (what.sam is None and any(v.name.endswith("/gain:0") for v in model.trainable_variables))
    norms = 1 if isinstance(run.state.optimizer, optimizer.SGD) else 0
    # And what the ledger counts, total and count of two metrics, and whether the loss is finite.
    assert types["CrossReplicaSum"] == gradients + statistics + norms + 1 + 4 + 1


@pytest.mark.parametrize(("ema_decay", "eval_precision"), [(0.9, None), (0.9, "float32"), (None, "float32")])
def test_the_evaluation_step_is_what_a_tpu_can_run(records, made_up_tpu, ema_decay, eval_precision):
    made_up_tpu()
    settings = {"ema_decay": ema_decay, "eval_precision": eval_precision}
    what = experiment(records, precision="mixed_bfloat16", **settings)
    run = components.assemble(HERE, what, TPU)
    assert run.state.evaluated.trunk.compute_dtype == (eval_precision or "bfloat16")
    if ema_decay is None:  # not another copy of the weights
        assert run.state.evaluated.linear.kernel is run.state.model.linear.kernel
    evaluator = Evaluator(run.strategy, what, run.validation, run.state.evaluated, batch=8)
    iterator = iter(evaluator.eval_dataset)
    assert check_what_the_tpu_runs(
        tf.function(evaluator.eval_step, autograph=False).get_concrete_function(iterator).graph
    )


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_what_an_evaluation_keeps_of_each_example_is_what_a_tpu_can_run(records, made_up_tpu, loss):
    made_up_tpu(replicas=4, hosts=2)
    model = {"model": PICO} if loss == "softmax" else {"loss": loss}
    what = experiment(records, precision="mixed_bfloat16", **model)
    run = components.assemble(HERE, what, TPU)
    collector = Collector(what.objective, several_labels=loss == "sigmoid")
    evaluator = Evaluator(run.strategy, what, run.validation, run.state.evaluated, batch=8, collector=collector)
    step = tf.function(evaluator.eval_step, autograph=False).get_concrete_function(iter(evaluator.eval_dataset))
    check_what_the_tpu_runs(step.graph)
    _, fields = step.structured_outputs
    assert {"position", "predicted", "confidence", "label_probabilities"} <= fields.keys()
    assert ("class_counts" in fields) == (loss == "sigmoid")


def test_few_shot_features_are_what_a_tpu_can_run(records, made_up_tpu):
    made_up_tpu()
    what = experiment(records, model=PICO, precision="mixed_bfloat16")
    run = components.assemble(HERE, what, TPU)
    evaluator = Evaluator(run.strategy, what, run.validation, run.state.evaluated, batch=8)
    step = few_shot.features_step(run.strategy, run.state.evaluated)
    assert check_what_the_tpu_runs(step.get_concrete_function(iter(evaluator.eval_dataset)).graph)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (lambda x: tf.strings.as_string(x), "AsString.* holds a string"),
        (lambda x: tf.numpy_function(np.sin, [x], tf.float32), "PyFunc.* is Python"),
        (lambda x: tf.where(x > 0.5), "Where.* has an unknown shape"),
    ],
)
def test_what_a_tpu_cannot_run_is_named(made_up_tpu, function, problem):
    made_up_tpu()
    strategy = TPU.create_strategy()

    def on_each_replica(x):
        return function(x)

    @tf.function(autograph=False)
    def step(x):
        return strategy.run(on_each_replica, args=(x,))

    graph = step.get_concrete_function(tf.TensorSpec([4])).graph
    assert re.search(problem, "; ".join(made_up_devices.problems(made_up_devices.on_tpu(graph))))


def test_a_run_comes_as_far_as_the_kernels_of_a_tpu(records, made_up_tpu, tmp_path):
    made_up_tpu()
    with pytest.raises(tf.errors.OpError, match=r"TPURepl(.|\n)*no registered kernels"):
        train(RunContext(str(tmp_path)), experiment(records), TPU)
    assert (tmp_path / "config.gin").exists()


def values(groups) -> dict[str, np.ndarray]:
    return {f"{group}/{name}": v.numpy() for group, members in groups.items() for name, v in members.items()}


@pytest.mark.parametrize("background", [pytest.param(False, marks=pytest.mark.slow), True])
def test_checkpoints_pass_between_a_tpu_and_other_numbers_of_replicas(records, made_up_tpu, tmp_path, background):
    made_up_tpu()
    what, context = experiment(records, max_steps=2), RunContext(str(tmp_path))
    train(context, what, ONE_DEVICE)
    here = components.assemble(HERE, what, ONE_DEVICE)
    starting_point.restore(context, what, here)
    there = components.assemble(HERE, what, TPU)
    saved = starting_point.restore(context, what, there)
    expected = values(here.state.groups)
    assert saved.step == 2 and expected["ledger/examples"][0] == 32
    for name, value in values(there.state.groups).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)

    writer = checkpoint.Writer(str(tmp_path / "from_tpu" / "checkpoints"), there.state.groups, background)
    writer.save(2, saved.facts)
    writer.wait()
    back = components.assemble(HERE, what, ONE_DEVICE)
    starting_point.restore(RunContext(str(tmp_path / "from_tpu")), what, back)
    for name, value in values(back.state.groups).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_weights_of_another_run_start_a_run_on_a_tpu_and_are_exported(records, made_up_tpu, tmp_path):
    made_up_tpu()
    what = experiment(records, max_steps=2)
    train(RunContext(str(tmp_path / "first")), what, ONE_DEVICE)
    transfer = dataclasses.replace(what, initial_checkpoint=str(tmp_path / "first"))
    run = components.assemble(HERE, transfer, TPU)
    assert starting_point.restore(RunContext(str(tmp_path / "second")), transfer, run) is None
    source = checkpoint.arrays(checkpoint.find(str(tmp_path / "first")), "ema")
    started = values(run.state.groups)
    for name, value in source.items():
        np.testing.assert_array_equal(started[f"model/{name}"], value, err_msg=name)
        np.testing.assert_array_equal(started[f"ema/{name}"], value, err_msg=name)

    checkpoint.Writer(str(tmp_path / "second" / "checkpoints"), run.state.groups).save(0, {})
    model = load_model(checkpoint.find(str(tmp_path / "second")), what.create_model)
    names = run.records.manifest.classes
    exported = client.load(served_model.export(tmp_path / "saved_model", model, classes=names))
    image = record_sets.jpeg(np.random.default_rng(0))
    output = exported.signatures["serving_default"](tf.constant([image]))
    assert output["valid"].numpy().all() and output["probabilities"].shape == (1, 10)


def test_the_state_is_the_same_on_every_strategy(records, made_up_tpu):
    made_up_tpu()
    what = experiment(records)
    digests = {weights_digest(components.assemble(HERE, what, loop).state.model) for loop in (TPU, ONE_DEVICE)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("batch", "hosts", "message"),
    [(18, 1, "divided over 4 replicas.*multiple of 4"), (12, 4, None), (4, 4, None), (20, 2, None)],
)
def test_a_batch_that_the_slice_does_not_divide_is_refused(records, made_up_tpu, batch, hosts, message):
    made_up_tpu(replicas=4, hosts=hosts)
    what = experiment(records)
    what = dataclasses.replace(what, data=dataclasses.replace(what.data, batch=batch))
    if message is None:
        assert components.assemble(HERE, what, TPU).budget.batch == batch
        return
    with pytest.raises(ValueError, match=message):
        components.assemble(HERE, what, TPU)


@pytest.mark.parametrize(
    ("model_dir", "data", "message"),
    [
        ("runs/mine", "gs://bucket/data", "model_dir is 'runs/mine', a folder of this machine.*2 hosts.*gs://"),
        ("gs://bucket/run", "data/mine", "DATA_DIR is 'data/mine'.*Loop.shared_folders"),
    ],
)
def test_folders_that_only_this_machine_has_are_refused(made_up_tpu, model_dir, data, message):
    made_up_tpu(replicas=4, hosts=2)
    what = tiny_runs.experiment(data)
    with pytest.raises(ValueError, match=message):
        train(RunContext(model_dir), what, dataclasses.replace(TPU, shared_folders=False))


def test_on_one_host_local_folders_do(records, made_up_tpu):
    made_up_tpu(replicas=4, hosts=1)
    assert components.assemble(HERE, experiment(records), dataclasses.replace(TPU, shared_folders=False))


def test_a_tpu_that_is_not_there_is_named(monkeypatch):
    def connect(*args):
        raise ValueError("Could not look up TPU 'nobody'\nand a long explanation")

    monkeypatch.setattr(tf.distribute.cluster_resolver.TPUClusterResolver, "connect", connect)
    with pytest.raises(ValueError, match=r"found no TPU \(Could not look up TPU 'nobody'\): set TPU_NAME"):
        Loop(strategy="tpu", tpu="nobody").create_strategy()
