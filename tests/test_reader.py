import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pipeline.data import manifest, reader, record, shard
from pipeline.data import order as orders
from pipeline.data.input import Data
from tests import record_sets

BATCH = 16


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("records")
    record_sets.make(path, examples=203, validation=21)
    return str(path)


def view(examples):
    return examples.map(lambda example: {name: example[name] for name in ("id", "key", "label", "epoch", "weight")})


def budget(records, epochs=1.0, batch=BATCH, **settings):
    return orders.EpochBudget(records.order(batch, seed=0, **{"block": 4, "window": 16, **settings}), batch, epochs)


def read(records, plan, view=view, **settings):
    return list(reader.dataset(records, plan, view, **settings).as_numpy_iterator())


def ids_of(batches, epoch):
    return np.concatenate([b["id"][(b["epoch"] == epoch) & (b["weight"] > 0)] for b in batches])


def test_each_epoch_reads_each_example_once(directory):
    records = reader.RecordSet(directory, "train")
    plan = budget(records, epochs=2.5)
    batches = read(records, plan)
    assert len(batches) == plan.steps
    for epoch in (0, 1):
        ids = ids_of(batches, epoch)
        assert len(ids) == len(set(ids)) == 203
        assert manifest.checksum(ids) == records.split.id_checksum
    half = ids_of(batches, 2)
    assert len(half) == len(set(half)) == 102 == plan.expected[2]
    assert list(ids_of(batches, 0)) != list(ids_of(batches, 1))


def test_the_content_is_what_was_written(directory):
    records = reader.RecordSet(directory, "train")
    for batch in read(records, budget(records)):
        for key, label, weight in zip(batch["key"], batch["label"], batch["weight"], strict=True):
            assert weight == 0 or key.startswith(f"class{label}/".encode())


@pytest.mark.parametrize("step", [1, 7, 13, 25])
def test_starting_anywhere_gives_the_same_batches(directory, step):
    records = reader.RecordSet(directory, "train")
    plan = budget(records, epochs=2.0)
    whole, part = read(records, plan), read(records, plan, first_step=step)
    assert len(part) == plan.steps - step
    for a, b in zip(whole[step:], part, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_starting_anywhere_reads_nothing_that_came_before(directory, monkeypatch):
    records = reader.RecordSet(directory, "train")
    plan = budget(records)
    count = []
    original = shard.read_records

    def counting(path, index, first, number):
        count.append(number)
        return original(path, index, first, number)

    monkeypatch.setattr(shard, "read_records", counting)
    read(records, plan, first_step=plan.steps - 1)
    assert sum(count) <= 2 * BATCH


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_read_the_same_batches_between_them(directory, hosts):
    records = reader.RecordSet(directory, "train")
    plan = budget(records, epochs=1.5)
    alone = read(records, plan)
    together = [read(records, plan, host=host, hosts=hosts) for host in range(hosts)]
    for step, batch in enumerate(alone):
        parts = np.concatenate([shares[step]["key"] for shares in together])
        assert sorted(parts) == sorted(batch["key"])


def test_reader_parallelism_does_not_change_the_order(directory):
    records = reader.RecordSet(directory, "train")
    plan = budget(records)
    one, many = read(records, plan, threads=1), read(records, plan, threads=2)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a["key"], b["key"])


def test_records_of_several_labels_keep_them_in_order(tmp_path):
    labels = {f"image{i}": list(range(i % 4)) for i in range(40)}  # none, one, two or three
    ids, records = [], []
    for key, values in labels.items():
        ids.append(record.record_id(key))
        fields = {"image": b"", "key": key, "id": ids[-1], "labels": values, "label_weights": [0.5 * v for v in values]}
        records.append(record.serialize(fields, record.MULTI_LABEL))
    index, _ = shard.write_shard(os.path.join(tmp_path, "many"), records)
    split = manifest.Split(40, 40, {}, manifest.checksum(ids), (manifest.Shard("many", 40, int(index[-1]), "0" * 64),))
    manifest.write(manifest.Manifest("many", ("a", "b", "c"), record.MULTI_LABEL, {"train": split}), str(tmp_path))
    records = reader.RecordSet(str(tmp_path), "train")
    batches = read(records, budget(records), replica_batch=1, view=lambda examples: examples.map(dict))
    found = {}
    for example in batches:
        if example["weight"][0] > 0:
            found[example["key"][0].decode()] = example["labels"][0].tolist(), example["label_weights"][0].tolist()
    assert found == {key: (values, [0.5 * v for v in values]) for key, values in labels.items()}


def test_evaluation_order_is_storage_order_and_complete(directory):
    records = reader.RecordSet(directory, "validation")
    plan = orders.EpochBudget(records.order(8, seed=0, shuffle=False), 8, 1)
    batches = read(records, plan)
    assert sum(b["weight"].sum() for b in batches) == 21
    assert {len(b["id"]) for b in batches} == {8}
    assert manifest.checksum(ids_of(batches, 0)) == records.split.id_checksum


def damaged_copy(directory, tmp_path, change):
    shutil.copytree(directory, tmp_path / "copy")
    path = os.path.join(tmp_path, "copy", "demo-train.tfrecord-00001-of-00003")
    with open(path, "r+b") as file:
        change(file, shard.read_index(path, 68))
    return str(tmp_path / "copy")


def flip_a_bit(file, index):
    file.seek(int(index[7]) + 30)
    byte = file.read(1)
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte[0] ^ 1]))


def test_a_damaged_record_stops_the_run_and_is_named(directory, tmp_path):
    records = reader.RecordSet(damaged_copy(directory, tmp_path, flip_a_bit), "train")
    with pytest.raises(
        tf.errors.OpError, match=r"demo-train.tfrecord-00001-of-00003 record 7 at offset \d+ is damaged"
    ):
        read(records, budget(records))


def test_a_damaged_record_can_be_masked_counted_and_named(directory, tmp_path):
    records = reader.RecordSet(damaged_copy(directory, tmp_path, flip_a_bit), "train", on_damage="mask")
    batches = read(records, budget(records))
    assert len(ids_of(batches, 0)) == 202
    assert len(records.damaged) == 1
    assert "record 7 at offset" in records.damaged.pop()


def test_a_truncated_shard_is_refused_before_any_work(directory, tmp_path):
    copy = damaged_copy(directory, tmp_path, lambda file, index: file.truncate(int(index[-1]) - 5))
    with pytest.raises(manifest.ManifestError, match=r"00001-of-00003 has \d+ bytes; the manifest says"):
        Data(copy, 8, 16, 16).training_records()


def test_an_empty_split_is_refused(tmp_path):
    record_sets.make(tmp_path, examples=10, validation=0)
    with pytest.raises(manifest.ManifestError, match="holds no examples"):
        reader.RecordSet(str(tmp_path), "validation")
