import dataclasses
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

from pipeline import objective
from pipeline.data import manifest, reader, record, shard
from pipeline.data import order as orders
from pipeline.data.batch_shape import BatchShape
from pipeline.data.input import Data, distributed_batches
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


def test_a_subset_is_read_as_a_set_of_its_own(directory):
    """Each epoch is each of its examples once, and a smaller subset is part of a larger one."""
    read_ids = {}
    for examples in (50, 100):
        records = Data(directory, BATCH, 8, 8, train_examples=examples).training_records()
        batches = read(records, budget(records, epochs=2))
        first, second = (ids_of(batches, epoch).tolist() for epoch in (0, 1))
        assert len(first) == examples and sorted(first) == sorted(second) and first != second
        read_ids[examples] = set(first)
        assert len(read_ids[examples]) == examples
    assert read_ids[50] < read_ids[100]


@pytest.mark.parametrize(
    ("examples", "message"),
    [(204, "holds 203 examples, fewer than the 204 asked for: set Data.train_examples"), (0, "expected 1 or more")],
)
def test_a_subset_that_does_not_exist_is_refused(directory, examples, message):
    with pytest.raises(ValueError, match=message):
        Data(directory, BATCH, 8, 8, train_examples=examples).training_records()


def test_a_subset_is_of_the_training_split_alone(directory):
    assert Data(directory, BATCH, 8, 8, train_examples=20).validation_records().examples == 21


def test_the_content_is_what_was_written(directory):
    records = reader.RecordSet(directory, "train")
    for batch in read(records, budget(records)):
        for key, label, weight in zip(batch["key"], batch["label"], batch["weight"], strict=True):
            assert weight == 0 or key.startswith(f"class{label}/".encode())


@pytest.fixture(scope="module")
def whole(directory):
    """The batches of two epochs."""
    records = reader.RecordSet(directory, "train")
    return read(records, budget(records, epochs=2.0))


@pytest.mark.parametrize("step", [1, 7, 13, 25])
def test_starting_anywhere_gives_the_same_batches(directory, whole, step):
    records = reader.RecordSet(directory, "train")
    plan = budget(records, epochs=2.0)
    part = read(records, plan, first_step=step)
    assert len(part) == plan.steps - step
    for a, b in zip(whole[step:], part, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def only(directory, path, positions):
    """A copy of the record set in which the bytes of every record but those at `positions` are zeros."""
    shutil.copytree(directory, path)
    split, first = manifest.read(directory).split("train"), 0
    for part in split.shards:
        file = path / part.file
        index = shard.read_index(str(file), part.examples)
        content = bytearray(file.read_bytes())
        for number in range(part.examples):
            if first + number not in positions:
                content[index[number] : index[number + 1]] = bytes(int(index[number + 1] - index[number]))
        file.write_bytes(content)
        first += part.examples
    return reader.RecordSet(str(path), "train")


def test_a_step_reads_its_own_records_and_nothing_else(directory, tmp_path):
    """Started at a step, the reader touches no damaged record, though all but those of the step are."""
    records = reader.RecordSet(directory, "train")
    plan = budget(records, epochs=2.0)
    step = 9
    rows = {}
    for window in range(2 * plan.order.windows):
        _, first_row, positions = plan.positions(window)
        rows.update({int(first_row) + i: row for i, row in enumerate(positions.numpy())})
    wanted = {int(position) for position in rows[step]}  # a batch of 16 is one row of 16 lanes
    assert len(wanted) == BATCH
    (batch,) = read(only(directory, tmp_path / "copy", wanted), plan, first_step=step, last_step=step + 1)
    assert batch["weight"].sum() == BATCH


def test_a_host_reads_its_own_records_and_no_others(directory, tmp_path):
    plan = budget(reader.RecordSet(directory, "train"))
    for host in range(2):
        lanes = BatchShape(BATCH, hosts=2).host_lanes(host)
        windows = [plan.order.positions(0, window, lanes)[1].numpy().ravel() for window in range(plan.order.windows)]
        wanted = set(np.concatenate(windows).tolist()) - {orders.EMPTY}
        batches = read(only(directory, tmp_path / f"copy{host}", wanted), plan, host=host, hosts=2)
        assert sum(batch["weight"].sum() for batch in batches) == len(wanted)


def operations(dataset):
    """The operations of a data set's graph and of all functions in it."""
    graph = tf.compat.v1.GraphDef.FromString(
        tf.raw_ops.DatasetToGraphV2(input_dataset=dataset._variant_tensor, strip_device_assignment=True).numpy()
    )
    functions = [node for function in graph.library.function for node in function.node_def]
    return {node.op for node in [*graph.node, *functions]}


@pytest.mark.parametrize("on_damage", reader.ON_DAMAGE)
def test_the_input_is_operations_of_tensorflow_alone(directory, on_damage):
    data = Data(directory, BATCH, 32, 32, on_damage=on_damage)
    records = data.training_records()
    dataset = reader.dataset(records, budget(records), data.training_view(0, objective.SOFTMAX))
    kinds = operations(dataset)
    assert {"TFRecordDatasetV2", "RandomIndexShuffle", "ParseExampleV2"} <= kinds
    assert not [kind for kind in kinds if "Py" in kind or "Numpy" in kind]


def test_closing_the_input_of_one_cpu_waits_for_no_tuner(directory):
    data = Data(directory, BATCH, 32, 32)
    records = data.training_records()
    strategy, view = tf.distribute.OneDeviceStrategy("/cpu:0"), data.training_view(0, objective.SOFTMAX)
    batches = distributed_batches(strategy, records, budget(records), view, BATCH)
    assert batches.options().autotune.enabled is False


@pytest.mark.parametrize("hosts", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_hosts_read_the_same_batches_between_them(directory, whole, hosts):
    records = reader.RecordSet(directory, "train")
    plan = budget(records, epochs=2.0)
    together = [read(records, plan, host=host, hosts=hosts) for host in range(hosts)]
    for step, batch in enumerate(whole):
        parts = np.concatenate([shares[step]["key"] for shares in together])
        assert sorted(parts) == sorted(batch["key"])


def test_reader_parallelism_does_not_change_the_order(directory, whole):
    records = reader.RecordSet(directory, "train")
    for a, b in zip(whole, read(records, budget(records, epochs=2.0), reads=7), strict=True):
        np.testing.assert_array_equal(a["key"], b["key"])


def test_reading_as_from_an_object_store_gives_the_same_batches(directory, whole, monkeypatch):
    records = reader.RecordSet(directory, "train")
    plan = budget(records, epochs=2.0)
    monkeypatch.setattr(reader.RecordSet, "is_remote", True)
    assert records.lookup().whole_runs
    monkeypatch.setattr(
        records, "lookup", lambda: dataclasses.replace(records.__class__.lookup(records), opens_lazily=True)
    )
    for a, b in zip(whole, read(records, plan), strict=True):
        np.testing.assert_array_equal(a["key"], b["key"])


def test_blocks_are_longer_where_each_read_takes_long():
    sizes = [Data(directory, 8, 16, 16).shuffle_sizes for directory in ("/records", "gs://bucket/records")]
    assert sizes[0] == (orders.Order.block, orders.Order.window)
    assert all(remote > local for remote, local in zip(sizes[1], sizes[0], strict=True))
    assert Data("gs://bucket/records", 8, 16, 16, block=4, window=5).shuffle_sizes == (4, 5)


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
    copy, folder = damaged_copy(directory, tmp_path, flip_a_bit), str(tmp_path / "names")
    records = reader.RecordSet(copy, "train", "mask", damaged_folder=folder)
    batches = read(records, budget(records))
    assert len(ids_of(batches, 0)) == 202
    (name,) = reader.damaged_records(folder)
    assert re.search(r"demo-train.tfrecord-00001-of-00003 record 7 at offset \d+$", name)


def shorten_a_record(file, index):
    """Another record in the place of one, whole in itself, and zeros behind it."""
    file.seek(int(index[7]))
    file.write(b"".join(shard.frame(b"x" * 20)))


def truncate(file, index):
    file.truncate(int(index[60]) + 20)


@pytest.mark.parametrize(("change", "lost"), [(shorten_a_record, {7}), (truncate, set(range(60, 68)))])
def test_what_is_not_in_its_place_is_damaged(directory, tmp_path, change, lost):
    copy, folder = damaged_copy(directory, tmp_path, change), str(tmp_path / "damaged")
    plan = budget(reader.RecordSet(directory, "train"))
    with pytest.raises(tf.errors.OpError, match=r"00001-of-00003 record \d+ at offset \d+") as error:
        read(reader.RecordSet(copy, "train"), plan)
    assert re.match(
        r"/\S+00001-of-00003 record \d+ at offset \d+.* is damaged: its bytes", str(reader.damage(error.value))
    )
    assert len(ids_of(read(reader.RecordSet(copy, "train", "mask", damaged_folder=folder), plan), 0)) == 203 - len(lost)
    names = reader.damaged_records(folder)
    assert {int(re.search(r"record (\d+) at", name)[1]) for name in names} == lost


@pytest.mark.parametrize("on_damage", reader.ON_DAMAGE)
@pytest.mark.parametrize("suffix", ["", ".index"])
def test_a_file_that_disappears_stops_the_run_and_is_named(directory, tmp_path, suffix, on_damage):
    """It is no damage to be masked: a folder that is not mounted would mask everything."""
    records = reader.RecordSet(damaged_copy(directory, tmp_path, lambda file, index: None), "train", on_damage)
    os.remove(os.path.join(records.directory, f"demo-train.tfrecord-00001-of-00003{suffix}"))
    with pytest.raises(
        tf.errors.NotFoundError, match=f"demo-train.tfrecord-00001-of-00003{suffix}; No such file"
    ) as error:
        read(records, budget(records))
    assert reader.damage(error.value) is None


def test_an_index_of_another_shard_is_refused(directory, tmp_path):
    copy = damaged_copy(directory, tmp_path, lambda file, index: None)
    path = os.path.join(copy, "demo-train.tfrecord-00001-of-00003.index")
    with open(path, "ab") as file:
        file.write(bytes(8))
    with pytest.raises(manifest.ManifestError, match=r"index has 560 bytes; the index of 68 records has 552"):
        Data(copy, 8, 16, 16).training_records()
    records = reader.RecordSet(copy, "train")
    with pytest.raises(tf.errors.OpError, match=r"00001-of-00003.index"):
        read(records, budget(records))
    os.remove(path)
    with pytest.raises(manifest.ManifestError, match=r"00001-of-00003.index is missing; .*: restore it"):
        Data(copy, 8, 16, 16).training_records()


def test_a_truncated_shard_is_refused_before_any_work(directory, tmp_path):
    copy = damaged_copy(directory, tmp_path, lambda file, index: file.truncate(int(index[-1]) - 5))
    with pytest.raises(manifest.ManifestError, match=r"00001-of-00003 has \d+ bytes; the manifest says"):
        Data(copy, 8, 16, 16).training_records()


def test_an_empty_split_is_refused(tmp_path):
    record_sets.make(tmp_path, examples=10, validation=0)
    with pytest.raises(manifest.ManifestError, match="holds no examples"):
        reader.RecordSet(str(tmp_path), "validation")
