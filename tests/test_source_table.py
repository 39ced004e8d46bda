"""Tables as a source: CSV, JSON lines and Parquet."""

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam.errors import BuildError
from beam.sources import registry
from tests import ingest_images
from tests.source_listing import content, listed, stream


def test_tables_of_three_formats_say_the_same(tmp_path):
    rows = [{"path": f"{i}.jpg", "label": f"c{i % 2}"} for i in range(6)]
    for row in rows:
        ingest_images.write(tmp_path / row["path"], b"x" * 3)
    with open(tmp_path / "list.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["label", "path"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist([{**row, "other": 1} for row in rows]), tmp_path / "list.parquet")
    from_csv = listed(tmp_path / "list.csv")
    assert from_csv == listed(tmp_path / "list.jsonl") == listed(tmp_path / "list.parquet")
    assert from_csv["3.jpg"].labels == ("c1",) and from_csv["3.jpg"].weights == (1.0,)
    assert content(from_csv["3.jpg"]) == b"xxx" and from_csv["3.jpg"].size == 3


def test_labels_with_weights_from_csv_and_parquet(tmp_path):
    ingest_images.write(tmp_path / "a.jpg", b"x")
    (tmp_path / "list.csv").write_text("path,labels,label_weights\na.jpg,cat|dog,0.25|1\n")
    row = {"path": "a.jpg", "labels": ["cat", "dog"], "label_weights": [0.25, 1.0]}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "list.parquet")
    for name in ("list.csv", "list.parquet"):
        assert registry.open_source(str(tmp_path / name)).is_multi_label
        example = listed(tmp_path / name)["a.jpg"]
        assert (example.labels, example.weights) == (("cat", "dog"), (0.25, 1.0))


def test_a_label_that_is_given_twice_counts_once(tmp_path):
    ingest_images.write(tmp_path / "a.jpg", b"x")
    (tmp_path / "list.csv").write_text("path,labels,label_weights\na.jpg,cat|cat|dog,0.5|0.5|1\n")
    example = listed(tmp_path / "list.csv")["a.jpg"]
    assert (example.labels, example.weights) == (("cat", "dog"), (0.5, 1.0))


@pytest.mark.parametrize(
    ("labels", "weights"),
    [
        (["cat", "dog"], [1.0]),
        (["cat", "dog"], [1.0, float("nan")]),
        (["cat", "dog"], [1.0, -1.0]),
        (["cat", "dog"], ["heavy", 1]),
        (["cat", "cat"], [1.0, 0.5]),
    ],
)
def test_weights_that_make_no_sense_refuse_the_row(tmp_path, labels, weights):
    ingest_images.write(tmp_path / "a.jpg", b"x")
    row = {"path": "a.jpg", "labels": labels, "label_weights": weights}
    (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n")
    assert listed(tmp_path / "list.jsonl")["a.jpg"].refusal[0] == "bad_row"


def test_parquet_without_the_columns_or_damaged(tmp_path):
    pq.write_table(pa.table({"file": ["a"], "label": ["b"]}), tmp_path / "columns.parquet")
    with pytest.raises(BuildError, match=r"found the columns \['file', 'label'\]"):
        registry.open_source(str(tmp_path / "columns.parquet"))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BuildError, match="cannot be read"):
        registry.open_source(str(tmp_path / "damaged.parquet"))


def test_parquet_text_that_is_not_utf_8_refuses_its_row(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        ingest_images.write(tmp_path / name, b"x")
    paths = pa.array([b"\xff.jpg", b"a.jpg", b"b.jpg"]).cast(pa.binary()).view(pa.string())
    labels = pa.array([[b"c"], [b"c", b"\xfe"], [b"c"]], pa.list_(pa.binary())).view(pa.list_(pa.string()))
    pq.write_table(pa.table({"path": paths, "labels": labels}), tmp_path / "list.parquet")
    examples = listed(tmp_path / "list.parquet")
    assert examples.pop("b.jpg").labels == ("c",)
    assert [example.refusal[0] for example in examples.values()] == ["bad_row", "bad_row"]


def test_a_pattern_names_several_tables(tmp_path):
    for i in range(3):
        ingest_images.write(tmp_path / f"{i}.jpg", b"x")
        (tmp_path / f"part-{i}.csv").write_text(f"path,label\n{i}.jpg,c\n")
    assert sorted(listed(tmp_path / "part-*.csv")) == ["0.jpg", "1.jpg", "2.jpg"]
    with pytest.raises(BuildError, match="does not exist"):
        registry.open_source(str(tmp_path / "nothing-*.csv"))


def test_tables_of_several_folders_have_different_keys(tmp_path):
    ingest_images.write(tmp_path / "c.jpg", b"c")
    for folder in ("p", "q"):
        ingest_images.write(tmp_path / folder / "a.jpg", folder.encode())
        rows = f"path,label,key\na.jpg,x,\n{tmp_path}/c.jpg,x,\na.jpg,x,{folder} own\n"
        ingest_images.write(tmp_path / folder / "list.csv", rows.encode())
    examples = stream(f"{tmp_path}/*/list.csv")
    both = f"{tmp_path}/c.jpg".encode()
    assert [example.key for example in examples] == [b"p/a.jpg", both, b"p own", b"q/a.jpg", both, b"q own"]
    assert content(examples[0]) == b"p" and content(examples[3]) == b"q"
    assert list(listed(tmp_path / "p" / "list.csv")) == ["a.jpg", f"{tmp_path}/c.jpg", "p own"]


def test_a_table_streams(tmp_path):
    """The second example comes before the rest of a table of 200,000 rows is read."""
    ingest_images.write(tmp_path / "a.jpg", b"x")
    with open(tmp_path / "list.csv", "w") as file:
        file.write("path,label\n")
        for i in range(200_000):
            file.write(f"{i}.jpg,c\n")
    source = registry.open_source(str(tmp_path / "list.csv"))
    examples = source.examples(source.parts[0])
    assert next(examples).key == b"0.jpg" and next(examples).key == b"1.jpg"
    examples.close()
