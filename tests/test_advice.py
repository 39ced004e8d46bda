"""What a user reads whose records do not fit a task: what there is, and what to do."""

import pytest

from pipeline.data import manifest
from pipeline.data.input import Data
from pipeline.train import checkpoint, evaluate
from tests import record_sets


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, examples=6, validation=3)
    return str(path)


@pytest.mark.parametrize(
    ("splits", "settings", "message"),
    [
        (
            ["train"],
            {},
            "No split 'validation' in .* which has train: .*--validation_fraction=0.1 to hold a tenth out[.]",
        ),
        (["train", "test"], {}, 'which has test, train: .*Data.validation_split="test"'),
        (["train", "validation"], {"validation_split": "test"}, "No split 'test' in"),
    ],
)
def test_a_set_without_the_validation_split(directory, splits, settings, message):
    made = manifest.read(directory)
    split = made.splits["validation"]
    changed = manifest.Manifest(**{**vars(made), "splits": dict.fromkeys(splits, split)})
    data = Data(directory, batch=2, train_size=8, eval_size=8, check_shards=False, **settings)
    with pytest.raises(manifest.ManifestError, match=message):
        data.validation_records(changed)


def test_a_set_without_training_images(directory):
    made = manifest.read(directory)
    changed = manifest.Manifest(**{**vars(made), "splits": {"validation": made.splits["validation"]}})
    data = Data(directory, batch=2, train_size=8, eval_size=8, check_shards=False)
    with pytest.raises(manifest.ManifestError, match=r"No split 'train' in .*build it with training images[.]"):
        data.training_records(changed)


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ("others", "trained on 2 classes, and /set has 10 others, such as .*--task=few_shot"),
        ("one more", "without 'zebra'.*--classes=FILE"),
        ("turned", "the same in another order.*--classes=FILE"),
    ],
)
def test_classes_that_differ_from_the_runs(directory, trained, message):
    made = manifest.read(directory)
    names = {"others": ["a", "b"], "one more": [*made.classes, "zebra"], "turned": made.classes[::-1]}
    saved = checkpoint.Saved("/run", 1, {"class_names": names[trained]}, 0.0)
    with pytest.raises(ValueError, match=message):
        evaluate.check_classes(saved, made, "/set")
    evaluate.check_classes(checkpoint.Saved("/run", 1, {"class_names": made.classes}, 0.0), made, "/set")
