import pytest
import tensorflow as tf

from pipeline.data import record

SINGLE = {"image": b"jpeg", "key": "cat/1.jpg", "id": record.record_id("cat/1.jpg"), "label": 3}
MULTI = {"image": b"jpeg", "key": "cat/1.jpg", "id": 5, "labels": [1, 4], "label_weights": [0.5, 0.25]}


def parse(serialized, label_kind):
    return record.parse(tf.constant([serialized]), tf.constant(["shard-7 record 3"]), label_kind)


def test_single_label_record_reads_back():
    parsed = parse(record.serialize(SINGLE, "single"), "single")
    assert {name: value.numpy()[0] for name, value in parsed.items()} == {**SINGLE, "key": b"cat/1.jpg"}


def test_multi_label_record_reads_back():
    parsed = parse(record.serialize(MULTI, "multiple"), "multiple")
    assert parsed["labels"].to_list() == [[1, 4]]
    assert parsed["label_weights"].to_list() == [[0.5, 0.25]]


def test_same_values_give_the_same_bytes_whatever_their_order():
    assert record.serialize(SINGLE, "single") == record.serialize(dict(reversed(SINGLE.items())), "single")


def test_record_id_is_stable_and_signed_64_bit():
    assert record.record_id("a/b.jpg") == 7488755259790052526
    ids = [record.record_id(str(i)) for i in range(1000)]
    assert len(set(ids)) == 1000 and min(ids) < 0 < max(ids)


def test_a_name_that_is_not_unicode_has_an_id():
    assert record.record_id(b"caf\xe9.jpg".decode("utf-8", "surrogateescape")) != record.record_id("caf.jpg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "'label' must hold one int64, found None"),
        ({"label": "cat"}, "'label' must hold one int64, found 'cat'"),
        ({"colour": 1}, "unknown field"),
    ],
)
def test_a_bad_field_is_named_with_its_record(change, message):
    with pytest.raises(ValueError, match=r"cat/1\.jpg") as error:
        record.serialize({**SINGLE, **change}, "single")
    assert message in str(error.value)


def test_a_missing_field_is_named_when_writing():
    with pytest.raises(ValueError, match=r"field 'label'.*is missing"):
        record.serialize({k: v for k, v in SINGLE.items() if k != "label"}, "single")


def test_a_missing_field_is_named_with_its_record_when_parsing():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"shard-7 record 3(.|\n)*label"):
        parse(record.serialize(MULTI, "multiple"), "single")


def test_a_mistyped_field_is_named_with_its_record_when_parsing():
    example = tf.train.Example()
    example.ParseFromString(record.serialize(SINGLE, "single"))
    example.features.feature["label"].Clear()
    example.features.feature["label"].float_list.value.append(3.0)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"shard-7 record 3(.|\n)*label"):
        parse(example.SerializeToString(), "single")
