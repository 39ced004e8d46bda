"""What a training step takes of memory at least, against sums by hand and against the processor's own."""

import json
import pathlib
import subprocess
import sys

import pytest
import tensorflow as tf

from pipeline.train import checkpoint, memory
from pipeline.train.run_config import Loop, RunContext
from pipeline.train.train import train
from tests import record_sets, tiny_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent


def counted(forward, *shapes, dtype=tf.float32):
    """`kept_bytes` of the gradient of `forward(*weights)` by its weights, which have these shapes."""
    weights = [tf.Variable(tf.ones(shape, dtype)) for shape in shapes]
    kept = []

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(forward(*weights))
        operations = memory.operations()
        values = tape.gradient(loss, weights)
        kept.append(memory.kept_bytes(operations, values))
        return values

    gradients.get_concrete_function()
    return kept[0]


def image(*shape, dtype=tf.float32):
    """An activation of the forward pass, which no weight has gone into."""
    return tf.random.stateless_uniform(shape, [1, 2], dtype=dtype)


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_the_input_of_each_layer_is_kept_once(dtype):
    def forward(first, second):
        hidden = tf.nn.relu(tf.nn.conv2d(image(4, 8, 8, 3, dtype=dtype), first, 1, "SAME"))
        return tf.nn.conv2d(hidden, second, 1, "SAME")  # relu's gradient takes its output too

    kept = counted(forward, (3, 3, 3, 16), (3, 3, 16, 32), dtype=dtype)
    assert kept == dtype.size * 4 * 8 * 8 * (3 + 16)


def test_views_of_one_buffer_count_once():
    def forward(weights):
        hidden = image(6, 4)
        return tf.matmul(tf.reshape(hidden, [3, 8]), weights[:8]) * tf.reduce_sum(tf.identity(hidden) @ weights[:4])

    products = 4 * (3 * 5 + 1)  # each factor of the product
    assert counted(forward, (8, 5)) == 4 * 6 * 4 + products


def test_what_is_computed_again_is_not_kept():
    def block(x):
        return tf.tanh(tf.tanh(tf.tanh(x)))

    plain = counted(lambda w: block(image(64, 8) @ w), (8, 8))
    recomputed = counted(lambda w: tf.recompute_grad(block)(image(64, 8) @ w), (8, 8))
    assert plain == 4 * 64 * 8 * (1 + 3) and recomputed == 4 * 64 * 8 * (1 + 1)


GB = 1 << 30


def test_the_message_names_the_estimate_what_there_is_and_what_would_fit():
    machine = memory.Machine(total=24 * GB, free=21 * GB, held=2 * GB)
    with pytest.raises(memory.OutOfMemoryError) as error:
        memory.check(images=4096, parts=2, kept=60 * GB, state=1 * GB, machine=machine)
    for part in ("2,048 images", "60.0 GiB", "2.0 GiB", "1.0 GiB", "24.0 GiB", "21.0 GiB", "573 images", "steps = 8"):
        assert part in str(error.value)


@pytest.mark.parametrize(("free", "held"), [(24, 25), (0, 1)])
def test_the_process_or_others_may_leave_no_room(free, held):
    with pytest.raises(memory.OutOfMemoryError, match="No batch of this model fits"):
        memory.check(images=8, parts=1, kept=GB, state=GB, machine=memory.Machine(24 * GB, free * GB, held * GB))


@pytest.mark.parametrize(("kept", "warned"), [(8, False), (9, True), (10, True)])
def test_what_fits_by_the_estimate_is_not_refused_and_what_is_near_warned_of(kept, warned, caplog):
    machine = memory.Machine(total=24 * GB, free=10 * GB, held=2 * GB)
    memory.check(images=8, parts=1, kept=kept * GB, state=GB, machine=machine)
    assert ("may end this run for lack of memory" in caplog.text) == warned
    assert not warned or "steps = 2" in caplog.text


def test_what_is_found_of_this_machine():
    machine = memory.Machine.now()
    assert 50 << 20 < machine.held < machine.total and 0 < machine.free <= machine.total


def test_a_container_limit_counts_at_every_level(tmp_path):
    swap = memory.psutil.swap_memory().total
    (tmp_path / "own").write_text("4:memory:/outer/inner\n1:cpu:/x\n0::/group/job\n")
    machine = memory.machine_bytes(str(tmp_path / "own"), str(tmp_path / "fs"))
    assert machine == memory.psutil.virtual_memory().total + swap == memory.machine_bytes(str(tmp_path / "none"))
    limits = {
        "group/job/memory.max": "max",
        "memory/outer/memory.limit_in_bytes": "3000000",
        "group/memory.max": "5000000",
    }
    expected = [machine, 3000000 + swap, 3000000 + swap]
    for (name, limit), size in zip(limits.items(), expected, strict=True):
        (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fs" / name).write_text(f"{limit}\n")
        assert memory.machine_bytes(str(tmp_path / "own"), str(tmp_path / "fs")) == size


def test_a_batch_that_cannot_fit_is_refused_before_its_first_step_and_fits_in_parts(tmp_path, monkeypatch):
    record_sets.make(tmp_path / "records", examples=32, validation=8)
    monkeypatch.setattr(memory.Machine, "now", lambda: memory.Machine(total=700_000, free=600_000, held=100_000))
    settings = {"epochs": 1.0}
    run = RunContext(str(tmp_path / "run"))
    with pytest.raises(memory.OutOfMemoryError, match=r"16 images.*0\.6 MiB.*accumulation_steps = 2"):
        train(run, tiny_runs.experiment(tmp_path / "records", **settings))
    assert checkpoint.latest(run.checkpoints) is None
    train(run, tiny_runs.experiment(tmp_path / "records", accumulation_steps=2, **settings), Loop(steps_per_loop=1))
    assert checkpoint.latest(run.checkpoints).step == 2


MEASURE = """
import json, resource, sys
import tensorflow as tf
from pipeline.model import nfnet
from pipeline.train import ledger, optimizer, schedule, step
model = nfnet.create("pico", num_classes=10)
sgd = optimizer.SGD(schedule.constant(1, 1.0, peak=0.1))
sgd.build(model.trainable_variables)
training, images = step.TrainingStep(model, sgd, ledger.Ledger(1)), int(sys.argv[1])
batch = {"image": tf.zeros([images, 64, 64, 3], tf.uint8), "labels": tf.zeros([images, 1], tf.int64)}
batch |= {"id": tf.zeros([images], tf.int64), "epoch": tf.zeros([images], tf.int32)}
batch |= {"label_weights": tf.ones([images, 1]), "weight": tf.ones([images])}
run = tf.function(training.__call__, autograph=False)
run.get_concrete_function(batch)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(batch)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([training.kept_bytes[0], 1024 * (after - before)]))
"""


@pytest.mark.slow
def test_the_estimate_is_less_than_what_the_process_takes():
    """Between two batches, so that what the process takes once does not count."""
    taken = []
    for images in ("256", "768"):
        command = [sys.executable, "-c", MEASURE, images]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        taken.append(json.loads(done.stdout))
    estimate, measured = (large - small for small, large in zip(*taken, strict=True))
    assert 0.8 * measured < estimate < measured
