import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from pipeline.model import nfnet, weights
from pipeline.train import optimizer, schedule
from tests import golden_model


def test_three_steps_of_f0_equal_the_authors():
    description, values = golden_model.load()
    model = golden_model.f0()
    images, labels = golden_model.batch(description)
    targets = tf.one_hot(labels, description["classes"]) * 0.9 + 0.1 / description["classes"]
    sgd = optimizer.SGD(0.02, momentum=0.9, nesterov=True, weight_decay=2e-5, clipping=0.01, clipping_epsilon=1e-3)

    def loss():
        return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(targets, model(images, training=True)))

    def step():
        with tf.GradientTape() as tape:
            value = loss()
        variables = model.trainable_variables
        sgd.apply_gradients(zip(tape.gradient(value, variables), variables, strict=True))
        return value

    variables = weights.named(model)
    before = {name: variable.numpy() for name, variable in variables.items()}
    losses = [step().numpy() for _ in range(3)]
    np.testing.assert_allclose([*losses, loss()], values["losses"], rtol=1e-3)
    ours = {theirs: name for name, theirs in weights.their_names(variables, "deepmind").items()}
    names = [ours[key] for key in golden_model.keys(description)]
    new = [variables[name].numpy() for name in names]
    delta = [variables[name].numpy() - before[name] for name in names]
    np.testing.assert_allclose([np.linalg.norm(x) for x in new], values["new_l2"], rtol=1e-4)
    np.testing.assert_allclose([np.linalg.norm(x) for x in delta], values["delta_l2"], rtol=1e-2)
    # A sum of signed values is only as exact as the norm of what is summed.
    sums = np.array([x.sum(dtype=np.float64) for x in delta])
    np.testing.assert_array_less(np.abs(sums - values["delta_sum"]), 2e-2 * values["delta_l2"] + 1e-5)


@pytest.mark.parametrize("shape", [(3, 3, 4, 5), (4, 5), (7,), ()])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_clipping_bounds_each_output_units_norm(shape, scale):
    rng = np.random.default_rng(0)
    weight, gradient = rng.normal(size=shape), scale * rng.normal(size=shape)
    clipped = optimizer.clip_adaptively(tf.constant(gradient), tf.constant(weight), 0.02, 1e-3).numpy()
    units = [(..., i) for i in range(shape[-1])] if len(shape) > 1 else [...]
    for unit in units:
        w, g = (np.sqrt(np.sum(np.square(x[unit]))) for x in (weight, gradient))
        expected = gradient[unit] * min(1, 0.02 * max(w, 1e-3) / g)
        np.testing.assert_allclose(clipped[unit], expected, rtol=1e-6)


def test_zero_weights_can_move_and_zero_gradients_stay():
    zeros = tf.zeros([3, 2])
    moved = optimizer.clip_adaptively(tf.ones([3, 2]), zeros, 0.01, 1e-3).numpy()
    np.testing.assert_allclose(np.linalg.norm(moved, axis=0), 1e-5, rtol=1e-5)
    np.testing.assert_array_equal(optimizer.clip_adaptively(zeros, zeros, 0.01, 1e-3), zeros)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_equal_a_plain_computation(nesterov):
    rng = np.random.default_rng(1)
    start = {
        "a/kernel": rng.normal(size=(4, 3)),
        "a/bias": rng.normal(size=3),
        "linear/kernel": rng.normal(size=(3, 2)),
    }
    variables = [tf.Variable(value, name=name, dtype=tf.float32) for name, value in start.items()]
    rates = schedule.linear(10, 1, peak=0.5, warmup_steps=2)
    sgd = optimizer.SGD(rates, momentum=0.8, nesterov=nesterov, weight_decay=0.1, clipping=0.05)
    expected = {name: value.copy() for name, value in start.items()}
    momenta = {name: np.zeros_like(value) for name, value in start.items()}
    for step in range(4):
        gradients = {name: rng.normal(size=value.shape) for name, value in start.items()}
        sgd.apply_gradients(
            [(tf.constant(gradients[v.name[:-2]], tf.float32), v) for v in variables],
        )
        rate = float(rates(step))
        for name, w in expected.items():
            g = gradients[name]
            if name != "linear/kernel":
                axis = 0 if g.ndim > 1 else None
                norm = np.linalg.norm(g, axis=axis)
                g = g * np.minimum(1, 0.05 * np.maximum(np.linalg.norm(w, axis=axis), 1e-3) / norm)
            if name.endswith("kernel"):
                g = g + 0.1 * w
            momenta[name] = 0.8 * momenta[name] + g
            w -= rate * (g + 0.8 * momenta[name] if nesterov else momenta[name])
        for variable in variables:
            np.testing.assert_allclose(variable, expected[variable.name[:-2]], rtol=1e-5, atol=1e-6)


def test_kernels_alone_decay_and_the_last_linear_layer_alone_is_not_clipped():
    model = nfnet.create("nano", 5)
    start = {name: variable.numpy() for name, variable in weights.named(model).items()}
    sgd = optimizer.SGD(1.0, momentum=0.0, nesterov=False, weight_decay=0.5, clipping=0.01)
    sgd.apply_gradients([(tf.zeros_like(v), v) for v in model.trainable_variables])
    for name, variable in weights.named(model).items():
        np.testing.assert_allclose(variable, start[name] * (0.5 if name.endswith("kernel") else 1), err_msg=name)
    sgd = optimizer.SGD(1.0, momentum=0.0, nesterov=False, weight_decay=0.0, clipping=0.01)
    before = {name: variable.numpy() for name, variable in weights.named(model).items()}
    sgd.apply_gradients([(100 * tf.ones_like(v), v) for v in model.trainable_variables])
    unclipped = [
        name for name, v in weights.named(model).items() if np.allclose(before[name] - v.numpy(), 100, rtol=1e-3)
    ]
    assert unclipped == ["linear/kernel"]


def test_two_replicas_step_as_one(two_replicas):
    data = np.random.default_rng(2).normal(size=(8, 4)).astype(np.float32)
    results = []
    for strategy in (tf.distribute.OneDeviceStrategy("/cpu:0"), two_replicas):
        with strategy.scope():
            kernel = tf.Variable(tf.ones([4, 2]), name="a/kernel")
            last = tf.Variable(tf.ones([2, 2]), name="linear/kernel")
            sgd = optimizer.SGD(0.1, clipping=0.05, weight_decay=0.01)
            sgd.build([kernel, last])
        parts = [tf.constant(part) for part in np.split(data, strategy.num_replicas_in_sync)]
        values = strategy.experimental_distribute_values_from_function(
            lambda context, parts=parts: parts[context.replica_id_in_sync_group]
        )

        @tf.function
        def step(strategy=strategy, kernel=kernel, last=last, sgd=sgd, values=values):
            def replica(batch):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum((batch @ kernel @ last) ** 2) / len(data)
                gradients = tape.gradient(loss, [kernel, last])
                sgd.apply_gradients(zip(gradients, [kernel, last], strict=True))

            strategy.run(replica, args=(values,))

        for _ in range(3):
            step()
        if strategy is two_replicas:
            copies = strategy.experimental_local_results(kernel)
            assert len(copies) == 2
            np.testing.assert_array_equal(*copies)
        results.append((kernel.numpy(), last.numpy()))
    for one, two in zip(*results, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)


def test_adamw_steps_equal_a_plain_computation_and_decays_kernels_alone(two_replicas):
    rng = np.random.default_rng(3)
    start = {"a/kernel": rng.normal(size=(4, 3)), "a/bias": rng.normal(size=3)}
    with two_replicas.scope():
        variables = [tf.Variable(value, name=name, dtype=tf.float32) for name, value in start.items()]
        adamw = optimizer.AdamW(0.1, weight_decay=0.3)
        adamw.build(variables)
    gradients = [{name: rng.normal(size=value.shape) for name, value in start.items()} for _ in range(3)]

    def replica(values):
        # Keras sums gradients over replicas.
        adamw.apply_gradients([(value / 2, variable) for value, variable in zip(values, variables, strict=True)])

    for values in gradients:
        tensors = [tf.constant(value, tf.float32) for value in values.values()]
        tf.function(lambda tensors: two_replicas.run(replica, args=(tensors,)))(tensors)
    for variable in variables:
        name = variable.name[:-2]
        w, m, v = start[name].copy(), 0, 0
        for t, values in enumerate(gradients, 1):
            m, v = 0.9 * m + 0.1 * values[name], 0.999 * v + 0.001 * values[name] ** 2
            if name.endswith("kernel"):
                w -= 0.1 * 0.3 * w
            w -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        for copy in two_replicas.experimental_local_results(variable):
            np.testing.assert_allclose(copy, w, rtol=1e-4, atol=1e-5)
    assert float(adamw.learning_rate_at(3)) == pytest.approx(0.1)
    assert optimizer.AdamW.from_config(adamw.get_config()).get_config() == adamw.get_config()


def test_learning_rate_of_any_step():
    rates = schedule.cosine(100, 10, peak=2.0, warmup_epochs=1)
    assert float(optimizer.SGD(rates).learning_rate_at(10)) == 2.0
    assert float(optimizer.SGD(0.25).learning_rate_at(7)) == 0.25


def test_the_configuration_makes_an_equal_optimizer():
    sgd = optimizer.SGD(0.1, momentum=0.5, nesterov=False, clipping=None, weight_decay=0.1, decayed=("*w",))
    copy = optimizer.SGD.from_config(sgd.get_config())
    assert copy.get_config() == sgd.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clipping": 0.0}, "clipping is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"unclipped": ("head/*",)}, r"SGD.unclipped has 'head/\*', which fits none of the 1"),
        ({"unclipped": (), "decayed": ("*w",)}, r"SGD.decayed has '\*w'"),
    ],
)
def test_wrong_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizer.SGD(0.1, **arguments).build([tf.Variable([1.0], name="a/kernel")])


def test_keras_can_fit_with_it():
    model = tf_keras.Sequential([tf_keras.layers.Dense(1, "linear", True, "zeros", input_shape=(2,), name="linear")])
    model.compile(optimizer.SGD(0.1, clipping=None), "mse")
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    history = model.fit(x, x.sum(1), epochs=20, shuffle=False, verbose=0).history["loss"]
    assert history[-1] < 0.05 * history[0]
