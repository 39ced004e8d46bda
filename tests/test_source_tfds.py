"""TFDS data sets as a source: record files, choice of features, other formats."""

import io
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from beam import launch
from beam.errors import BuildError
from beam.sources import registry
from pipeline.data import manifest
from pipeline.data.shard import scan
from tests.source_listing import content, listed, picture, stream


def test_tfds_set_keeps_its_class_order_and_its_bytes(tmp_path):
    names = ["zebra", "ape", "mole"]
    shard = tmp_path / "animals-train.tfrecord-00000-of-00001"
    with tf.io.TFRecordWriter(str(shard)) as writer:
        for i in range(6):
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture(i)])),
                "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[i % 3])),
            }
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    tfds.folder_dataset.write_metadata(
        data_dir=str(tmp_path),
        features={"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=names)},
        split_infos=[
            tfds.core.SplitInfo(
                name="train",
                shard_lengths=[6],
                num_bytes=0,
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=str(tmp_path), dataset_name="animals", split="train", filetype_suffix="tfrecord"
                ),
            )
        ],
        check_data=False,
    )
    examples = listed(f"tfds:{tmp_path}/train")
    assert examples[f"{shard.name}__4"].labels == ("ape",)
    assert [content(example) for example in examples.values()] == [picture(i) for i in range(6)]
    assert registry.open_source(f"tfds:{tmp_path}/train").classes == tuple(names)
    with pytest.raises(BuildError, match="test"):
        registry.open_source(f"tfds:{tmp_path}/test")
    with pytest.raises(BuildError, match="download_and_prepare"):
        registry.open_source("tfds:no_such_data_set/train")
    with pytest.raises(BuildError, match=r"train\[:50%\] is no whole split; expected one of train"):
        registry.open_source(f"tfds:{tmp_path}/train[:50%]")
    whole = shard.read_bytes()
    ends = [offset - 12 for offset, _ in scan(io.BytesIO(whole))]  # 12: length and its CRC
    for size, missing in ((len(whole) - 700, 1), (ends[4], 2), (0, 6)):  # within a record, between two, nothing at all
        shard.write_bytes(whole[:size])
        refused = [example.refusal is not None for example in listed(f"tfds:{tmp_path}/train").values()]
        assert refused == [False] * (6 - missing) + [True] * missing


class TwoNames(tfds.core.GeneratorBasedBuilder):
    """Images with a coarse and a fine label, and labels of the objects in them."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(__file__).parent  # where TFDS would look for metadata
    supervised_keys = None

    def _info(self):
        label = tfds.features.ClassLabel
        features = {
            "image": tfds.features.Image(),
            "mask": tfds.features.LabeledImage(shape=(None, None, 1), labels=2),
            "coarse": label(names=["tree", "fish"]),
            "fine": label(names=["oak", "elm", "trout"]),
            "objects": tfds.features.Sequence({"label": label(names=["leaf", "fin"]), "size": np.float32}),
        }
        features = tfds.features.FeaturesDict(features)
        return self.dataset_info_from_configs(features=features, supervised_keys=self.supervised_keys)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i, fine in enumerate((0, 1, 2, 2)):
            pixels = np.full((20, 30, 3), 60 * i, np.uint8)
            objects = [{"label": fine // 2, "size": 1.0}] * i
            example = {"image": pixels, "mask": pixels[..., :1] // 255, "coarse": fine // 2, "fine": fine}
            yield i, {**example, "objects": objects}


class TwoNamesWithAUsualOne(TwoNames):
    supervised_keys = ("image", "fine")


def test_a_tfds_set_with_several_labels_is_chosen_from(tmp_path):
    builder = TwoNames(data_dir=str(tmp_path))
    builder.download_and_prepare()
    path = f"tfds:{builder.data_dir}/train"
    with pytest.raises(BuildError, match=r"several .* ClassLabel \(.*fine.*\): choose with --label_feature="):
        registry.open_source(path)
    with pytest.raises(BuildError, match=r"--label_feature=family: no ClassLabel of that name .*objects/label"):
        registry.open_source(path, {"label_feature": "family"})
    with pytest.raises(BuildError, match="--image_feature=mask: no Image of that name"):
        registry.open_source(path, {"image_feature": "mask", "label_feature": "fine"})
    output = tmp_path / "coarse"
    flags = [f"--input={path}", f"--output_dir={output}", "--shards=1", "--image_feature=image"]
    assert launch.main([*flags, "--label_feature=coarse"]) == 0
    record_set = manifest.read(str(output))
    assert record_set.classes == ("tree", "fish") and record_set.label_kind == "single"
    assert record_set.splits["train"].written == 4
    source = registry.open_source(path, {"label_feature": "objects/label"})
    (part,) = source.parts
    found = sorted((example.labels, example.weights, example.refusal is None) for example in source.examples(part))
    assert source.is_multi_label
    assert found == [((), (), False), (("fin",), (1.0,), True), (("fin",), (1.0,), True), (("leaf",), (1.0,), True)]


def test_a_tfds_set_that_names_its_label_needs_no_choice(tmp_path):
    builder = TwoNamesWithAUsualOne(data_dir=str(tmp_path))
    builder.download_and_prepare()
    labels = [example.labels for example in listed(f"tfds:{builder.data_dir}/train").values()]
    assert sorted(labels) == [("elm",), ("oak",), ("trout",), ("trout",)]


def prepared(tmp_path, file_format) -> str:
    builder = TwoNamesWithAUsualOne(data_dir=str(tmp_path / file_format), file_format=file_format)
    builder.download_and_prepare()
    return str(builder.data_dir)


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_a_tfds_set_in_another_format_gives_the_same_images(tmp_path, file_format):
    found, expected = (
        {example.labels: content(example) for example in stream(f"tfds:{prepared(tmp_path, kind)}/train")}
        for kind in (file_format, "tfrecord")
    )
    assert len(expected) == 3 and found == expected
    output = tmp_path / "records"
    path = f"tfds:{tmp_path}/{file_format}/two_names_with_a_usual_one/1.0.0/train"
    assert launch.main([f"--input={path}", f"--output_dir={output}", "--shards=1", "--duplicates=report"]) == 0
    assert manifest.read(str(output)).splits["train"].written == 4


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_a_damaged_file_of_another_format_is_no_empty_one(tmp_path, file_format, capsys):
    directory = pathlib.Path(prepared(tmp_path, file_format))
    (file,) = directory.glob("*train*0000*")
    file.write_bytes(file.read_bytes()[:-50])
    assert launch.main([f"--input=tfds:{directory}/train", f"--output_dir={tmp_path}/records"]) == 1
    assert file.name in capsys.readouterr().err


def test_a_file_that_lacks_records_is_refused(tmp_path, capsys):
    """As TFDS's own writer of Parquet leaves them out, from the second hundred on."""
    directory = pathlib.Path(prepared(tmp_path, "parquet"))
    (file,) = directory.glob("*train*0000*")
    pq.write_table(pq.read_table(file).slice(0, 3), file)
    assert launch.main([f"--input=tfds:{directory}/train", f"--output_dir={tmp_path}/records"]) == 1
    message = capsys.readouterr().err
    assert file.name in message and "holds 3 records; expected 4" in message and "file_format='tfrecord'" in message


def test_riegeli_is_refused_with_what_to_do(tmp_path):
    directory = pathlib.Path(prepared(tmp_path, "tfrecord"))
    info = directory / "dataset_info.json"
    info.write_text(info.read_text().replace('"fileFormat": "tfrecord"', '"fileFormat": "riegeli"'))
    with pytest.raises(BuildError, match=r"stored as riegeli.*Python package.*file_format='tfrecord'"):
        registry.open_source(f"tfds:{directory}/train")


def test_features_are_chosen_from_tfds_sets_alone(tmp_path, capsys):
    assert launch.main([f"--input={tmp_path}", f"--output_dir={tmp_path}/set", "--label_feature=fine"]) == 1
    message = capsys.readouterr().err
    assert "--label_feature is for a TFDS data set" in message and "is a folder tree: remove the flag" in message
