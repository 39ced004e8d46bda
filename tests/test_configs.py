"""Every gin file: parses, passes all checks, and builds its model (in a graph, where variables take no memory)."""

import pathlib

import pytest
import tensorflow as tf
import tf_keras

from pipeline import configure, registry
from pipeline.model import cost, nfnet
from pipeline.train import experiment, schedule

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPERIMENTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("gin/*.gin"))
STUDY = ("f0", "f1", "f3", "f3plus", "f7", "f7plus")


def load(file, *params):
    """The experiment that a gin file and bindings describe."""
    registry.register()
    configure.load([str(ROOT / file)], params, entry="main", tasks=registry.TASKS)
    return configure.get("Experiment")()


@pytest.fixture(autouse=True)
def float32_afterwards():
    yield
    tf_keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(scope="module")
def called():
    return set()


def test_the_study_has_all_its_files():
    wanted = {f"gin/{name}_{task}.gin" for name in STUDY for task in ("jft", "imagenet")}
    wanted |= {"gin/quickstart_pretrain.gin", "gin/quickstart_finetune.gin"}
    wanted |= {f"gin/f{i}_imagenet_scratch.gin" for i in range(8)}
    assert wanted <= set(EXPERIMENTS)


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_experiment_builds(file, called):
    found = load(file)
    assert isinstance(found, experiment.Experiment)
    tf_keras.mixed_precision.set_global_policy(found.precision)
    num_classes = found.num_classes or 10
    with tf.Graph().as_default():
        model = found.model(num_classes=num_classes)
        if model.name not in called:  # a call takes seconds, and the files of a variant share its model
            called.add(model.name)
            logits = model(tf.zeros([2, found.data.train_size, found.data.train_size, 3]), training=True)
            assert logits.shape == (2, num_classes)
            assert logits.dtype == tf.float32
        if isinstance(model, nfnet.NFNet):
            count = sum(variable.shape.num_elements() for variable in model.trainable_variables)
            assert count == cost.parameters(model.variant, num_classes)
    steps = 100_000
    rate = found.schedule(steps, steps / found.epochs)
    assert float(rate(0)) < float(rate(steps // 5)) > float(rate(steps - 1)) >= 0
    assert found.optimizer(learning_rate=rate).learning_rate_at(steps // 5) == rate(steps // 5)


@pytest.mark.parametrize("name", STUDY)
def test_pretraining_is_as_the_study_reports(name):
    found = load(f"gin/{name}_jft.gin")
    assert (found.data.batch, found.data.train_size, found.data.eval_size) == (4096, 224, 256)
    assert found.num_classes == 30_000
    rate = found.schedule(10_000, 10_000)
    assert max(float(rate(step)) for step in range(0, 10_000, 100)) == pytest.approx(1.6, rel=0.01)
    assert isinstance(rate, schedule.WarmUp)


@pytest.mark.parametrize("name", STUDY)
def test_finetuning_is_as_the_study_reports(name):
    found = load(f"gin/{name}_imagenet.gin")
    assert (found.data.train_size, found.data.eval_size, found.epochs) == (384, 480, 50)
    assert found.sam is not None
    assert found.data.augmentation.repeats == 4
    assert found.initial_checkpoint == f"runs/{name}_jft"


@pytest.mark.parametrize(
    ("index", "sizes", "magnitude"),
    [
        (0, (192, 256), 5),
        (1, (224, 320), 10),
        (2, (256, 352), 10),
        (3, (320, 416), 15),
        (4, (384, 512), 15),
        (5, (416, 544), 15),
        (6, (448, 576), 15),
        (7, (480, 608), 15),
    ],
)
def test_imagenet_from_scratch_is_as_the_nfnet_paper_reports(index, sizes, magnitude):
    found = load(f"gin/f{index}_imagenet_scratch.gin")
    assert (found.data.train_size, found.data.eval_size) == sizes
    assert (found.epochs, found.data.batch, found.ema_decay, found.label_smoothing) == (360, 4096, 0.99999, 0.1)
    assert (found.data.augmentation.randaugment.layers, found.data.augmentation.randaugment.magnitude) == (4, magnitude)
    assert found.data.augmentation.mixing.mixup_alpha == 0.2
    assert found.data.augmentation.mixing.cutmix


def test_a_macro_overrides_every_use():
    found = load("gin/f7_jft.gin", "EPOCHS=0.25", "GLOBAL_BATCH=8", 'DATA_DIR="elsewhere"', "Experiment.max_steps=2")
    assert (found.epochs, found.data.batch, found.data.directory, found.max_steps) == (0.25, 8, "elsewhere", 2)


@pytest.mark.parametrize(
    ("param", "message"),
    [
        ("EPOCH=3", "macro EPOCH is used nowhere; did you mean EPOCHS?"),
        ("EPOCHS='three'", "Experiment.epochs must be float, found 'three'"),
        ("SAM.rho=0.1", "nothing uses SAM.rho"),
        ("nfnet.depth=3", "depth"),
        ("RUN=@trian", "trian"),
    ],
)
def test_a_mistake_in_a_real_experiment_is_found(param, message):
    with pytest.raises(configure.ConfigurationError) as error:
        load("gin/f7_jft.gin", param)
    assert message in str(error.value)
