"""Every gin file: parses, passes all checks, and builds its model (in a graph, where variables take no memory)."""

import pathlib
import re
import tempfile

import pytest
import tensorflow as tf
import tf_keras

import gin
from pipeline import configure, registry
from pipeline.model import variants
from pipeline.train import experiment, schedule
from tests import parameter_count

ROOT = pathlib.Path(__file__).resolve().parent.parent
OWN = "gin/finetune_own.gin"  # needs records: tests/test_auto_settings.py
EXPERIMENTS = sorted({str(path.relative_to(ROOT)) for path in ROOT.glob("gin/*.gin")} - {OWN})
STUDY = [variants.identifier(name) for name in variants.STUDY_CORE_BATCHES]
OLDER_WITHOUT = (
    r"(Augmentation\.min_object_covered|Experiment\.eval_precision|nfnet\.dropout_rate|EVAL_PRECISION|DROPOUT_RATE).*"
)


def load(file, *params):
    """The experiment that a gin file and bindings describe."""
    registry.register()
    configure.load([str(ROOT / file)], params, entry="main", tasks=registry.TASKS)
    return configure.get("Experiment")()


@pytest.fixture(autouse=True)
def float32_afterwards():
    yield
    tf_keras.mixed_precision.set_global_policy("float32")


def test_the_study_has_all_its_files():
    wanted = {f"gin/{name}_{task}.gin" for name in STUDY for task in ("jft", "imagenet")}
    wanted |= {"gin/quickstart_pretrain.gin", "gin/quickstart_finetune.gin"}
    wanted |= {f"gin/f{i}_imagenet_scratch.gin" for i in range(8)}
    assert wanted <= set(EXPERIMENTS)


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_experiment_builds(file):
    setup = load(file)
    assert isinstance(setup, experiment.Experiment)
    tf_keras.mixed_precision.set_global_policy(setup.precision)
    num_classes = setup.num_classes or 10
    overrides = {}
    if file != "gin/vit_demo.gin":
        assert gin.query_parameter("nfnet.variant") in variants.VARIANTS
        # The others differ in width and depth, and tests/test_nfnet.py builds them.
        overrides = {"variant": "pico"}
    with tf.Graph().as_default():
        model = setup.model(num_classes=num_classes, **overrides)
        logits = model(tf.zeros([2, setup.data.train_size, setup.data.train_size, 3]), training=True)
        assert logits.shape == (2, num_classes)
        assert logits.dtype == tf.float32
        if model.variant in variants.VARIANTS:
            count = sum(variable.shape.num_elements() for variable in model.trainable_variables)
            assert count == parameter_count.parameters(model.variant, num_classes)
    steps = 100_000
    rate = setup.schedule(steps, steps / setup.epochs)
    assert float(rate(0)) < float(rate(steps // 5)) > float(rate(steps - 1)) >= 0
    assert setup.optimizer(learning_rate=rate).learning_rate_at(steps // 5) == rate(steps // 5)


@pytest.mark.parametrize("name", STUDY)
def test_pretraining_is_as_the_study_reports(name):
    setup = load(f"gin/{name}_jft.gin")
    assert (setup.data.batch, setup.data.train_size, setup.data.eval_size) == (4096, 224, 256)
    assert setup.num_classes == 30_000
    rate = setup.schedule(10_000, 10_000)
    assert max(float(rate(step)) for step in range(0, 10_000, 100)) == pytest.approx(1.6, rel=0.01)
    assert isinstance(rate, schedule.WarmUp)


@pytest.mark.parametrize("file", [*(f"gin/{name}_jft.gin" for name in STUDY), "gin/study/demo_pretrain.gin"])
def test_dropout_does_not_vary_with_the_model_in_pretraining(file):
    """It would confound a law in model size; the variant's own rate is a macro away, and it is fine-tuning's."""
    load(file)
    assert configure.resolved()["nfnet.dropout_rate"] == "0.0"
    load(file, "DROPOUT_RATE=None")
    assert configure.resolved()["nfnet.dropout_rate"] == "None"
    load("gin/f7_imagenet.gin")
    assert "nfnet.dropout_rate" not in configure.resolved()


@pytest.mark.parametrize("name", STUDY)
def test_finetuning_is_as_the_study_reports(name):
    setup = load(f"gin/{name}_imagenet.gin")
    assert (setup.data.train_size, setup.data.eval_size, setup.epochs) == (384, 480, 50)
    assert setup.sam is not None
    assert setup.data.augmentation.repeats == 1  # 90.3%; with more it is gin/run/repeated_augmentation.gin
    assert setup.initial_checkpoint == f"runs/{name}_jft"


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
    setup = load(f"gin/f{index}_imagenet_scratch.gin")
    assert (setup.data.train_size, setup.data.eval_size) == sizes
    assert (setup.epochs, setup.data.batch, setup.ema_decay, setup.label_smoothing) == (360, 4096, 0.99999, 0.1)
    assert (setup.data.augmentation.randaugment.layers, setup.data.augmentation.randaugment.magnitude) == (4, magnitude)
    assert setup.data.augmentation.mixing.mixup_alpha == 0.2
    assert setup.data.augmentation.mixing.cutmix


@pytest.mark.parametrize("file", EXPERIMENTS)
def test_views_and_crops_are_the_authors(file):
    """ImageNet is evaluated with the view of the published accuracies; no crop has less than a tenth of its image."""
    setup = load(file)
    assert setup.data.eval_view == ("resize_crop" if "_imagenet" in file else "crop_resize")
    assert setup.data.augmentation.min_object_covered == 0.1
    bindings = configure.resolved()
    assert bindings["Augmentation.min_object_covered"] == "0.1"
    assert ("Data.eval_view" in bindings) == ("_imagenet" in file)


def test_a_macro_overrides_every_use():
    setup = load("gin/f7_jft.gin", "EPOCHS=0.25", "GLOBAL_BATCH=8", 'DATA_DIR="elsewhere"', "Experiment.max_steps=2")
    assert (setup.epochs, setup.data.batch, setup.data.directory, setup.max_steps) == (0.25, 8, "elsewhere", 2)


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


def test_a_run_made_before_a_setting_existed_continues_as_it_was():
    """From its own configuration, which does not name the setting; from the recipe, which does, its bindings differ."""
    load("gin/f0_jft.gin")
    text = "\n".join(line for line in configure.text().splitlines() if not re.match(OLDER_WITHOUT, line))
    with tempfile.NamedTemporaryFile("w", suffix=".gin") as config:
        config.write(text)
        config.flush()
        before = registry.bindings([config.name], [])
        setup = configure.get("Experiment")()
    assert setup.data.augmentation.min_object_covered == 0  # as crops were
    assert setup.eval_precision is None  # as evaluation was: in the precision of training
    assert setup.data.eval_view == "crop_resize"
    after = registry.bindings([str(ROOT / "gin/f0_jft.gin")], [])
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == {"Augmentation.min_object_covered", "Experiment.eval_precision", "nfnet.dropout_rate"}


def test_a_run_with_the_mean_sigmoid_loss_does_not_continue_under_the_sum():
    """Their bindings differ, and those of the softmax loss are as written."""
    sigmoid = registry.bindings([str(ROOT / "gin/f0_jft.gin")], ['Experiment.loss="sigmoid"'])
    softmax = registry.bindings([str(ROOT / "gin/f0_jft.gin")], ['Experiment.loss="softmax"'])
    assert sigmoid["Experiment.loss"] == "'sigmoid', summed over classes"
    assert softmax["Experiment.loss"] == "'softmax'"
