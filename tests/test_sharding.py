"""Kernels, momenta and averages shared out over replicas: they learn as whole ones, and checkpoints are the same."""

import functools
import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from pipeline.data.augment import Augmentation
from pipeline.data.order import EpochBudget, Order
from pipeline.model import classifier, layers, nfnet, tpu_layers, variants
from pipeline.sharding import collectives, gathering, sharded_variable
from pipeline.sharding.row_order import RowOrder
from pipeline.sharding.sharded_variable import RowShardedVariable
from pipeline.sharding.slice_strategy import SliceStrategy
from pipeline.train import checkpoint, optimizer, state
from pipeline.train.sam import SAM
from pipeline.train.step import TrainingStep
from tests import tiny_runs

BATCH, CLASSES, STEPS = 12, 10, 20
# Differences after `STEPS` steps, in L2 norms, since sums over replicas are rounded in another order: of weights and of
# their averages; and of momenta, sums of gradients that cancel.
CLOSE, CLOSE_MOMENTA = 1e-6, 1e-5
SGD = functools.partial(optimizer.SGD, clipping=0.02, weight_decay=1e-3)


def _slow_adamw(learning_rate):  # but not that of `tiny_runs`
    return optimizer.AdamW(1e-3)


class GroupedTrunk(tiny_runs.TinyTrunk):
    """With two groups in its block: 400 rows in an order of their own, which 3 replicas share with padding."""

    def __init__(self):
        super().__init__(0.0)
        self.conv = layers.WSConv(variants.Conv("block", 16, 16, kernel=5, groups=2))


def grouped(num_classes, target_device=None):
    """A model of grouped convolutions."""
    return classifier.Classifier(GroupedTrunk(), num_classes, name="grouped")


RECIPES = {
    "pre-training": {},
    "several labels of repeats": {
        "loss": "sigmoid",
        "augmentation": Augmentation(repeats=2),
        "frozen": ("stem/*",),
        "ema_decay": None,
    },
    "SAM of all": {"sam": SAM(scope="global"), "accumulation_steps": 2},
    "groups and SAM": {"model": grouped, "sam": SAM()},
    "AdamW": {"optimizer": _slow_adamw},
}
PARTS_OF_RECIPES = {
    "one part after the other": {"accumulation_steps": 2},
    "SAM of each replica": {"sam": SAM()},
    "several labels": {"loss": "sigmoid"},
    "repeats": {"augmentation": Augmentation(repeats=2)},
    "a frozen stem": {"frozen": ("stem/*",)},
    "without an average": {"ema_decay": None},
    "groups": {"model": grouped},
    "groups in parts": {"model": grouped, "accumulation_steps": 2},
}


@pytest.fixture(autouse=True, scope="module")
def optimized_graphs():
    """As in programs, of which the bounds are; conftest.py leaves TensorFlow's graph optimizer out."""
    before = tf.config.optimizer.get_experimental_options()
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})
    yield
    tf.config.optimizer.set_experimental_options(before)


@pytest.fixture(autouse=True)
def small_kernels_too(monkeypatch):
    monkeypatch.setattr(sharded_variable, "MIN_VALUES", 128)
    monkeypatch.setattr(tpu_layers, "GROUP_WIDTH", 8)


@functools.cache
def strategy(replicas: int) -> tf.distribute.Strategy:
    """Without collectives, as `two_replicas` of conftest.py."""
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    devices = [f"/cpu:{i}" for i in range(replicas)]
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


def create(replicas, shard=None, model=tiny_runs.without_noise, **recipe):
    experiment = tiny_runs.experiment("nowhere", model=model, shard_optimizer=shard, **{"optimizer": SGD, **recipe})
    with strategy(replicas).scope():
        budget = EpochBudget(Order(10 * BATCH, BATCH, 0, "", 4, 8), BATCH, epochs=10.0)
        return experiment, state.create_state(experiment, CLASSES, budget)


def train(replicas, experiment, train_state, steps=STEPS, jit_compile=False):
    """Steps on random images, the same for each number of replicas; returns the losses."""
    step = TrainingStep.of(experiment, train_state, jit_compile)
    run = tf.function(lambda batch: strategy(replicas).run(step, args=(batch,)), autograph=False)
    losses = []
    for _ in range(steps):
        rng = np.random.default_rng(train_state.step)
        images, labels = rng.integers(256, size=[BATCH, 32, 32, 3]), rng.integers(CLASSES, size=[BATCH, 1])

        def share(context, images=images, labels=labels):
            own = slice(*(BATCH // replicas * (context.replica_id_in_sync_group + i) for i in range(2)))
            return {
                "image": tf.constant(images[own], tf.uint8),
                "labels": tf.constant(labels[own], tf.int64),
                "label_weights": tf.ones([BATCH // replicas, 1]),
                "weight": tf.ones([BATCH // replicas]),
                "id": tf.range(own.start, own.stop, dtype=tf.int64),
                "epoch": tf.zeros([BATCH // replicas], tf.int32),
            }

        output = run(strategy(replicas).experimental_distribute_values_from_function(share))
        losses.append(sum(float(loss) for loss in strategy(replicas).experimental_local_results(output.loss)))
    return losses


def values(train_state):
    return {
        f"{group}/{name}": variable.numpy()
        for group, members in train_state.groups.items()
        for name, variable in members.items()
    }


def sharded(train_state):
    return [name for name, v in train_state.groups["model"].items() if isinstance(v, RowShardedVariable)]


def assert_close(found, expected, factor=1.0):
    assert found.keys() == expected.keys()
    for name in found:
        limit = factor * (CLOSE_MOMENTA if name.startswith("optimizer/") else CLOSE)
        assert _difference(found[name], expected[name]) <= limit, name


def _difference(found, expected):
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-3))


def train_with_and_without_shards(replicas, shard=None, **recipe):
    """Losses and state of a run that shares its kernels out, and of one that does not."""
    results = []
    for wanted in (shard, False):
        experiment, created = create(replicas, wanted, **recipe)
        results.append((train(replicas, experiment, created), created))
    return results


@pytest.mark.parametrize(
    ("recipe", "replicas"),
    [
        *(pytest.param(recipe, 3, id=name) for name, recipe in RECIPES.items()),
        *(pytest.param(recipe, 3, id=name, marks=pytest.mark.slow) for name, recipe in PARTS_OF_RECIPES.items()),
        *(pytest.param({}, replicas, marks=pytest.mark.slow) for replicas in (2, 4)),
    ],
)
def test_shards_learn_as_whole_variables_do(recipe, replicas):
    (losses, found), (expected_losses, expected) = train_with_and_without_shards(replicas, **recipe)
    assert not sharded(expected)
    assert {"block/kernel", "linear/kernel", "stem/kernel"} == set(sharded(found))
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_close(values(found), values(expected))


def test_a_compiled_step_takes_what_is_gathered():
    experiment, found = create(2, sam=SAM(), accumulation_steps=2)
    _, expected = create(2, shard=False, sam=SAM(), accumulation_steps=2)
    train(2, experiment, found, steps=3, jit_compile=True)
    train(2, experiment, expected, steps=3)
    assert_close(values(found), values(expected))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"recompute_stages": (1, 2)}, {"implementation": "tpu"}])
def test_nfnets_learn_as_with_whole_variables(settings):
    model = functools.partial(nfnet.create, "pico", dropout_rate=0.0, **settings)
    (losses, found), (expected_losses, expected) = train_with_and_without_shards(3, shard=True, model=model)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    assert_close(values(found), values(expected), factor=10)  # 40 layers


def test_layers_in_bfloat16_gather_bfloat16():
    """The kernels' bits as whole ones have them, but for the rounding of standardisation itself."""
    experiment, found = create(2, precision="mixed_bfloat16")
    _, expected = create(2, shard=False, precision="mixed_bfloat16")
    train(2, experiment, found, steps=5)
    train(2, experiment, expected, steps=5)
    assert_close(values(found), values(expected), factor=1e4)


class KerasTrunk(tf_keras.Model):
    """Of Keras' own layers, whose variables mixed precision wraps, as those of the Model Garden's backbones."""

    variant, channels = "keras", 32

    def __init__(self):
        super().__init__(name="trunk")
        self.stem = tf_keras.layers.Conv2D(16, 8, 8, name="stem")
        self.norm = tf_keras.layers.LayerNormalization(name="norm")
        self.conv = tf_keras.layers.Conv2D(self.channels, 3, name="conv")
        self.call(tf.zeros([1, 32, 32, 3]))
        self.built = True

    def call(self, images, training=False, seed=None):
        return [self.conv(tf.nn.relu(self.norm(self.stem(images))))]


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_layers_of_keras_share_out_their_kernels(tmp_path, precision):
    model = lambda num_classes, target_device: classifier.Classifier(KerasTrunk(), num_classes)  # noqa: E731
    settings = {"model": model, "precision": precision, "optimizer": _slow_adamw}
    experiment, found = create(3, **settings)
    _, expected = create(3, shard=False, **settings)
    assert len(sharded(found)) == 3
    losses, expected_losses = train(3, experiment, found, 5), train(3, experiment, expected, 5)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5 if precision == "float32" else 1e-2)
    if precision == "float32":
        assert_close(values(found), values(expected))
    saved = save(tmp_path, found)
    with strategy(3).scope():
        checkpoint.restore(saved, expected.groups)
    np.testing.assert_equal(values(expected), values(found))


def test_a_functional_model_is_made_for_a_slice():
    """Keras calls its layers when it is made, outside of any step."""
    with SliceStrategy(4).scope(), sharded_variable.sharding_kernels():
        images = tf_keras.Input([32, 32, 3])
        model = tf_keras.Model(images, tf_keras.layers.Conv2D(16, 8, 8)(images))
    assert isinstance(model.trainable_variables[0], RowShardedVariable)
    assert model.output_shape == (None, 4, 4, 16)


class TwoOfOneName(tf_keras.Model):
    """Two layers of one name."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (tf_keras.layers.Dense(16, name="same") for _ in range(2))
        for layer in (self.one, self.other):
            layer.build([None, 16])


def test_names_that_several_variables_have_are_refused():
    with strategy(2).scope(), sharded_variable.sharding_kernels():
        model = TwoOfOneName()
    with pytest.raises(ValueError, match="several variables have the name kernel"):
        gathering.gather(model)


def save(directory, train_state):
    writer = checkpoint.Writer(str(directory), train_state.groups, background=True)
    path = writer.save(train_state.step, {})
    writer.wait()
    return checkpoint.open_checkpoint(path)


@pytest.mark.parametrize(
    ("before", "after"), [(3, 2), (4, 1), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [(2, 4), (1, 3)])]
)
def test_checkpoints_continue_on_another_number_of_replicas(tmp_path, before, after):
    experiment, saved_state = create(before)
    train(before, experiment, saved_state, steps=3)
    saved = save(tmp_path, saved_state)
    expected = values(saved_state)
    train(before, experiment, saved_state, steps=1)  # while the background writes, and after
    _, whole = create(1, shard=False)
    assert checkpoint.variables(saved) == checkpoint.variables(save(tmp_path / "whole", whole)), "as without shards"
    np.testing.assert_equal(
        {f"model/{name}": value for name, value in checkpoint.arrays(saved, "model").items()},
        {name: value for name, value in expected.items() if name.startswith("model/")},
    )
    experiment, continued = create(after)
    with strategy(after).scope():
        checkpoint.restore(saved, continued.groups)
    np.testing.assert_equal(values(continued), expected)
    train(after, experiment, continued, steps=1)
    assert_close(values(continued), values(saved_state))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    _, other = create(2, model=functools.partial(nfnet.create, "pico"))
    saved = save(tmp_path, other)
    _, created = create(3)
    with pytest.raises(checkpoint.CheckpointError, match="does not fit this model") as error:
        checkpoint.restore(saved, created.groups)
    assert "model/linear/kernel has shape (128, 10) in the checkpoint and (16, 10) in the model" in str(error.value)
    assert len(str(error.value).splitlines()) < 15


def test_rows_of_grouped_kernels_go_from_group_to_group():
    kernel = np.random.default_rng(0).normal(size=[3, 2, 8, 24]).astype(np.float32)
    order = RowOrder(kernel.shape)
    matrix = order.matrix(tf.constant(kernel))
    assert (order.groups, order.fan_in, tuple(matrix.shape)) == (3, 48, (order.rows, order.columns))
    # Height, width, group, input channel.
    np.testing.assert_array_equal(matrix[((2 * 2 + 1) * 3 + 1) * 8 + 5], kernel[2, 1, 5, 8:16])
    np.testing.assert_array_equal(order.kernel(matrix), kernel)
    np.testing.assert_allclose(order.unit_sums(matrix), kernel.sum((0, 1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(order.by_row(tf.range(24.0), order.rows)[5 * 8], np.arange(16.0, 24.0))


@pytest.mark.parametrize("variant", ["F0", "F1", "F3", "F3+", "F7+"])
def test_grouped_kernels_are_known_by_their_shape(variant, monkeypatch):
    monkeypatch.setattr(tpu_layers, "GROUP_WIDTH", 128)
    spec = variants.get(variant)
    convs = [*variants.stem(spec), *(conv for block in variants.blocks(spec) for conv in block.convs)]
    assert any(conv.groups > 1 for conv in convs)
    for conv in convs:
        shape = (conv.kernel, conv.kernel, conv.in_channels // conv.groups, conv.channels)
        assert RowOrder(shape).groups == conv.groups, conv.name


def test_a_variable_is_whole_outside_of_steps():
    _, created = create(3)
    kernel = created.groups["model"]["linear/kernel"]
    rows = np.arange(16 * CLASSES, dtype=np.float32).reshape(16, CLASSES)
    kernel.assign(rows)
    assert kernel.shape == rows.shape and kernel.trainable and kernel.name == "linear/kernel:0"
    for whole in (kernel.numpy(), kernel.read_value(), tf.convert_to_tensor(kernel), kernel + 0.0):
        np.testing.assert_array_equal(whole, rows)
    parts = [part.numpy() for part in kernel.parts]
    assert [len(part) for part in parts] == [6, 6, 6]
    np.testing.assert_array_equal(np.concatenate(parts), np.pad(rows, [(0, 2), (0, 0)]))
    with strategy(3).scope():
        inside = strategy(3).experimental_local_results(strategy(3).run(lambda: tf.identity(kernel)))
    for whole in inside:
        np.testing.assert_array_equal(whole, rows)


def test_padding_stays_zero():
    experiment, created = create(3)
    train(3, experiment, created, steps=2)
    for group in ("model", "ema"):
        np.testing.assert_array_equal(created.groups[group]["linear/kernel"].parts[2][4:], 0)
    slots = created.optimizer.named_variables()
    np.testing.assert_array_equal(slots["m/linear/kernel"].parts[2][4:], 0)


@pytest.mark.parametrize(("replicas", "shard"), [(1, None), (1, True), (3, False)])
def test_where_there_is_nothing_to_share_out_variables_are_whole(replicas, shard):
    _, created = create(replicas, shard)
    assert not sharded(created)


def test_more_replicas_than_rows_leave_a_kernel_whole():
    with SliceStrategy(20).scope(), sharded_variable.sharding_kernels():
        model = classifier.Classifier(tiny_runs.TinyTrunk(0.0), CLASSES)
    assert {v.name for v in model.variables if isinstance(v, RowShardedVariable)} == {"stem/kernel:0", "block/kernel:0"}


def test_a_strategy_that_cannot_says_so(caplog):
    central = tf.distribute.experimental.CentralStorageStrategy(["/cpu:0", "/cpu:1"], "/cpu:0")
    assert not collectives.can_shard(central)
    with central.scope(), sharded_variable.sharding_kernels(wanted=True):
        kernel = tf.Variable(tf.zeros([64, 64]), shape=[64, 64], dtype=tf.float32)
    assert not isinstance(kernel, RowShardedVariable)
    assert re.search("stays whole on each replica: CentralStorageStrategy", caplog.text)


def test_the_program_of_a_replica_makes_no_pass_over_whole_kernels():
    """What XLA gets: one gather and one scatter for each kernel, and arithmetic on shards alone."""
    slices, rows = SliceStrategy(8), 8
    with slices.scope():
        model = lambda num_classes, target_device: classifier.Classifier(tiny_runs.TinyTrunk(0.0), num_classes)  # noqa: E731
        experiment = tiny_runs.experiment("nowhere", model=model, optimizer=SGD)
        budget = EpochBudget(Order(10 * BATCH, BATCH, 0, "", 4, 8), BATCH, epochs=10.0)
        created = state.create_state(experiment, CLASSES, budget)
    assert {"block/kernel", "linear/kernel", "stem/kernel"} == set(sharded(created))
    batch = {
        "image": tf.zeros([rows, 32, 32, 3], tf.uint8),
        "labels": tf.zeros([rows, 1], tf.int64),
        "label_weights": tf.ones([rows, 1]),
        "weight": tf.ones([rows]),
        "id": tf.range(rows, dtype=tf.int64),
        "epoch": tf.zeros([rows], tf.int32),
    }
    step = TrainingStep.of(experiment, created)
    compiled = tf.function(lambda batch: slices.run(step, args=(batch,)), jit_compile=True, autograph=False)
    text = compiled.experimental_get_compiler_ir(batch)(stage="hlo")
    assert len(re.findall(r" all-gather\(", text)) == len(re.findall(r" reduce-scatter\(", text)) == 3
    arithmetic = r"= f32\[(?:3,3,16,16|144,16|3,3,3,16|27,16|16,10)\]\S* (multiply|add|subtract|divide|rsqrt|select)\("
    assert not re.findall(arithmetic, text)
    # Statistics twice, gradients through them, and clipping; each in one vector for all kernels.
    vectors = re.findall(r"= f32\[(\d+)\]\S* all-reduce\(", text)
    assert sorted(map(int, vectors)) == sorted([16, 16, 16, 16, 10, 32, 32, 64, 64])
