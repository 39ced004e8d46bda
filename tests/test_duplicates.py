"""Duplicates: hashes, pairs and their policies, evaluation sets; compared with plain all-pairs searches."""

import itertools
import json
import os

import imagehash
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from beam import duplicates, launch
from pipeline.data import manifest
from tests import ingest_images
from tests.test_build_tfrecords import build, failure, records, refusals


def row(number: int, perceptual: int, content: bytes | None = None) -> duplicates.Row:
    return duplicates.Row(b"%03d" % number, b"", -1, -1, content or b"content %08d" % number, perceptual)


def close_rows(seed: int, count: int = 60) -> list[duplicates.Row]:
    """Hashes of which many are within a few bits of another."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 6, dtype=np.uint64)
    rows = []
    for i in range(count):
        bits = int(centres[rng.integers(6)])
        for bit in rng.integers(0, 64, rng.integers(0, 6)):
            bits ^= 1 << int(bit)
        rows.append(row(i, bits))
    return rows


def all_pairs(rows: list[duplicates.Row], distance: int) -> set[frozenset]:
    return {
        frozenset((a.key, b.key))
        for a, b in itertools.combinations(rows, 2)
        if (a.perceptual ^ b.perceptual).bit_count() <= distance
    }


def found_pairs(rows: list[duplicates.Row], distance: int, both: bool) -> dict[bytes, duplicates.Pair]:
    """What the graph's functions find, grouped in plain Python."""
    groups, buckets, pairs = {}, {}, []
    for item in rows:
        groups.setdefault(item.perceptual, []).append(item)
    for group in groups.items():
        for tag, value in duplicates.same_hash(group, distance, both):
            if tag == "pair":
                pairs.append(value)
            elif distance > 0:
                for bucket, member in duplicates.tables(value, distance):
                    buckets.setdefault(bucket, []).append(member)
    for bucket in buckets.items():
        pairs += duplicates.near(bucket, distance, both)
    return duplicates.best(pairs)


@pytest.mark.parametrize("distance", [0, 1, 3, 8])
def test_banded_search_names_the_images_that_all_pairs_names(distance):
    for seed in range(5):
        rows = close_rows(seed)
        truth = all_pairs(rows, distance)
        later = {max(pair) for pair in truth}
        assert set(found_pairs(rows, distance, both=False)) == later
        assert set(found_pairs(rows, distance, both=True)) == set().union(*truth)
        for pair in found_pairs(rows, distance, both=False).values():
            assert frozenset((pair.image.key, pair.other.key)) in truth and pair.other.key < pair.image.key
            assert pair.distance == (pair.image.perceptual ^ pair.other.perceptual).bit_count()


def test_exact_only_ignores_looks():
    rows = [row(0, 5, b"same"), row(1, 5, b"same"), row(2, 5, b"other")]
    assert set(found_pairs(rows, duplicates.EXACT_ONLY, both=False)) == {b"001"}
    assert set(found_pairs(rows, duplicates.EXACT_ONLY, both=True)) == {b"000", b"001"}
    assert {p.reason for p in found_pairs(rows, 0, both=False).values()} == {"duplicate", "near_duplicate"}


@pytest.mark.parametrize("distance", [-1, 0, 3, 8])
def test_reference_finds_the_closest(distance):
    reference_rows, asked = close_rows(1), close_rows(2) + close_rows(1)[:5]
    asked += [row(900 + i, r.perceptual ^ 0b101) for i, r in enumerate(reference_rows)]
    reference = duplicates.Reference(reference_rows, distance)
    for item in asked:
        pair = reference.find(item)
        exact = [r for r in reference_rows if r.content == item.content]
        distances = [(item.perceptual ^ r.perceptual).bit_count() for r in reference_rows]
        if exact:
            assert pair.reason == "evaluation_duplicate" and pair.other == exact[0]
        elif min(distances) <= distance:
            assert (pair.reason, pair.distance) == ("evaluation_near_duplicate", min(distances))
        else:
            assert pair is None


def test_an_empty_reference_finds_nothing():
    assert duplicates.Reference([], 3).find(row(1, 7)) is None


def test_the_hash_is_imagehash_of_the_picture_and_survives_small_changes():
    picture = ingest_images.picture(3, 400, 300)
    png = ingest_images.encode(picture, "PNG")
    _, bits = duplicates.hashes(png)
    assert f"{bits:016x}" == str(imagehash.phash(picture))
    copies = [
        ingest_images.encode(picture, quality=60),
        ingest_images.encode(picture, quality=95),
        ingest_images.encode(picture.resize((200, 150), Image.Resampling.BOX), quality=90),
    ]
    for copy in copies:
        assert (duplicates.hashes(copy)[1] ^ bits).bit_count() <= 4
    other = ingest_images.encode(ingest_images.picture(4, 400, 300))
    assert (duplicates.hashes(other)[1] ^ bits).bit_count() > 8


def test_rows_survive_their_file(tmp_path):
    names = [b"\xff,\n\"'", b"a\rb", b"a\r\nb", b"\n", b'"', "été\u2028".encode()]
    rows = [row(1, 2**64 - 1), *(duplicates.Row(n, b"/\xfe" + n, 12, 34, bytes(range(16)), 0) for n in names)]
    path = str(tmp_path / "rows.csv")
    with tf.io.gfile.GFile(path, "wb") as file:
        duplicates.write_rows(file, rows)
    with tf.io.gfile.GFile(path, "rb") as file:
        assert list(duplicates.read_rows(file)) == rows
    ingest_images.write(path, b"a,b\n1,2\n")
    with open(path, "rb") as file, pytest.raises(ValueError, match="no column"):
        list(duplicates.read_rows(file))


def test_names_that_are_not_text_can_be_duplicates(tmp_path):
    source, data = os.fsencode(tmp_path / "source"), ingest_images.encode(ingest_images.picture(1))
    names = [b"a/1.jpg", b"a/\xff.jpg", b"b/a\rb.jpg", b"b/a\nb.jpg"]
    for name in names:
        ingest_images.write(os.path.join(source, name), data)
    ingest_images.write(os.path.join(source, b"b/other.jpg"), ingest_images.encode(ingest_images.picture(2)))
    build(tmp_path / "source", tmp_path / "set", "--duplicates=keep_first")
    found = {key.encode("utf-8", "surrogateescape"): reason for key, reason in refusals(tmp_path / "set").items()}
    assert found == dict.fromkeys(sorted(names)[1:], "duplicate")
    before = ingest_images.contents(tmp_path / "set")
    build(tmp_path / "source", tmp_path / "set", "--duplicates=keep_first")
    assert ingest_images.contents(tmp_path / "set") == before


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Twelve different images, an exact copy of one and a re-encoded copy of another."""
    root = tmp_path_factory.mktemp("tree")
    for i in range(12):
        data = ingest_images.encode(ingest_images.picture(i, 120, 90), quality=92)
        ingest_images.write(f"{root}/c{i % 2}/{i:02d}.jpg", data)
        if i == 3:
            ingest_images.write(f"{root}/c0/copy.jpg", data)
    ingest_images.write(f"{root}/c1/again.jpg", ingest_images.encode(ingest_images.picture(5, 120, 90), quality=70))
    return root


EXACT, FIRST, NEAR, OLD = "c1/03.jpg", "c0/copy.jpg", "c1/again.jpg", "c1/05.jpg"


def test_keep_first_removes_the_later_of_each_pair(tree, tmp_path):
    made = build(tree, tmp_path / "set", "--duplicates=keep_first", "--validation_fraction=0.3")
    assert refusals(tmp_path / "set") == {EXACT: "duplicate", NEAR: "near_duplicate"}
    assert sum(split.written for split in made.splits.values()) == 12
    with open(tmp_path / "set" / "duplicates.jsonl") as file:
        pairs = {r["key"]: r for r in map(json.loads, file)}
    assert pairs[EXACT]["other_key"] == FIRST and pairs[NEAR]["other_key"] == OLD
    assert pairs[EXACT]["distance"] == 0 and 0 <= pairs[NEAR]["distance"] <= 3
    assert pairs[NEAR]["path"] == f"{tree}/{NEAR}" and pairs[NEAR]["other_path"] == f"{tree}/{OLD}"
    before = ingest_images.contents(tmp_path / "set")
    build(tree, tmp_path / "set", "--duplicates=keep_first", "--validation_fraction=0.3")
    assert ingest_images.contents(tmp_path / "set") == before


def test_drop_removes_both_and_report_neither(tree, tmp_path):
    build(tree, tmp_path / "drop", "--duplicates=drop")
    assert set(refusals(tmp_path / "drop")) == {EXACT, FIRST, NEAR, OLD}
    made = build(tree, tmp_path / "report", "--duplicates=report")
    assert refusals(tmp_path / "report") == {} and made.split("train").written == 14
    with open(tmp_path / "report" / "duplicates.jsonl") as file:
        assert {r["key"] for r in map(json.loads, file)} == {EXACT, NEAR}
    build(tree, tmp_path / "exact", "--duplicates=keep_first", "--duplicate_distance=-1")
    assert refusals(tmp_path / "exact") == {EXACT: "duplicate"}


def test_another_policy_over_an_old_build_equals_a_fresh_one(tree, tmp_path):
    build(tree, tmp_path / "set", "--duplicates=drop")
    build(tree, tmp_path / "set")
    build(tree, tmp_path / "fresh")
    assert ingest_images.contents(tmp_path / "set") == ingest_images.contents(tmp_path / "fresh")


@pytest.mark.parametrize("kind", ["set", "hashes"])
def test_evaluation_images_are_not_trained_on(tree, tmp_path, kind):
    source = tmp_path / "evaluation"
    for i in (0, 1):
        quality = {0: 92, 1: 60}[i]
        data = ingest_images.encode(ingest_images.picture(i, 120, 90), quality=quality)
        ingest_images.write(source / "e" / f"{i}.jpg", data)
    ingest_images.write(source / "e" / "new.jpg", ingest_images.encode(ingest_images.picture(77, 120, 90)))
    build(source, tmp_path / "eval", "--shards=2", "--duplicates=report")
    reference = tmp_path / "eval"
    if kind == "hashes":
        reference = tmp_path / "hashes.csv"
        parts = [p.read_text().split("\n", 2)[2] for p in sorted((tmp_path / "eval").glob("*.hashes"))]
        reference.write_text("key,path,offset,size,content,perceptual\n" + "".join(parts))
    made = build(tree, tmp_path / "set", f"--remove_duplicates_of={reference}", "--duplicates=keep_first")
    found = refusals(tmp_path / "set")
    assert found["c0/00.jpg"] == "evaluation_duplicate" and found["c1/01.jpg"] == "evaluation_near_duplicate"
    assert set(found) == {"c0/00.jpg", "c1/01.jpg", EXACT, NEAR}
    assert made.split("train").rejected["evaluation_duplicate"] == 1
    written = {r["key"].decode() for r in records(tmp_path / "set", "train")}
    assert "c0/00.jpg" not in written and len(written) == 10


def test_reference_that_is_none_is_refused_clearly(tree, tmp_path, capsys):
    (tmp_path / "words.csv").write_text("some,words\n")
    for reference, words in (("words.csv", "found no columns"), ("nothing", "does not exist")):
        message = failure(
            capsys,
            f"--input={tree}",
            f"--output_dir={tmp_path}/set",
            f"--remove_duplicates_of={tmp_path}/{reference}",
        )
        assert words in message
    with pytest.raises(manifest.ManifestError):
        manifest.read(str(tmp_path / "set"))
    assert launch.main([f"--input={tree}", f"--output_dir={tmp_path}/set", "--duplicate_distance=99"]) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (f"k,{'0' * 30},{'0' * 16}", f"content is '{'0' * 30}'; expected 32 hexadecimal digits"),
        (f"k,{'0' * 32},{'f' * 17}", f"perceptual is '{'f' * 17}'; expected 16 hexadecimal digits"),
        (f"k,{'0' * 32},-{'0' * 15}", "perceptual is '-0"),
        ("k", "content is None"),
    ],
)
def test_a_malformed_row_of_hashes_is_named(tmp_path, row, words):
    ingest_images.write(tmp_path / "a.csv", f"key,content,perceptual\ng,{'0' * 32},{'0' * 16}\n{row}\n".encode())
    with open(tmp_path / "a.csv", "rb") as file, pytest.raises(ValueError, match=f"^line 3: {words}"):
        list(duplicates.read_rows(file))


def test_a_reference_with_a_malformed_row_is_refused_clearly(tree, tmp_path, capsys):
    (tmp_path / "hashes.csv").write_text("key,content,perceptual\nk,short,\n")
    flags = [f"--input={tree}", f"--output_dir={tmp_path}/set", f"--remove_duplicates_of={tmp_path}/hashes.csv"]
    message = failure(capsys, *flags)
    assert f"--remove_duplicates_of: {tmp_path}/hashes.csv, line 2: content is 'short'; expected 32" in message
    assert len(message.splitlines()) == 1


def test_a_reference_with_a_damaged_record_is_refused_clearly(tree, tmp_path, capsys):
    ingest_images.write(tmp_path / "evaluation" / "e" / "a.jpg", ingest_images.encode(ingest_images.picture(1)))
    build(tmp_path / "evaluation", tmp_path / "reference", "--shards=1")
    (shard,) = (tmp_path / "reference").glob("*-00000-of-00001")
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    flags = [f"--input={tree}", f"--output_dir={tmp_path}/set", f"--remove_duplicates_of={tmp_path}/reference"]
    assert f"--remove_duplicates_of: {shard}, record 0 is damaged: mend it" in failure(capsys, *flags)
