"""Duplicates: hashes, pairs and their policies, evaluation sets; compared with plain all-pairs searches."""

import itertools
import json
import os
import pathlib
import shutil

import imagehash
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from beam import duplicates, hashing, launch
from beam.errors import BuildError
from pipeline.data import manifest
from pipeline.files import write_atomically
from tests import ingest_images
from tests.ingest_builds import build, failure, records, refusals


def image(number: int, perceptual: int, content: bytes | None = None) -> duplicates.HashedImage:
    return duplicates.HashedImage(b"%03d" % number, b"", -1, -1, content or b"content %08d" % number, perceptual)


def close_rows(seed: int, count: int = 60) -> list[duplicates.HashedImage]:
    """Hashes of which many are within a few bits of another."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 6, dtype=np.uint64)
    rows = []
    for i in range(count):
        bits = int(centres[rng.integers(6)])
        for bit in rng.integers(0, 64, rng.integers(0, 6)):
            bits ^= 1 << int(bit)
        rows.append(image(i, bits))
    return rows


def all_pairs(rows: list[duplicates.HashedImage], distance: int) -> set[frozenset]:
    return {
        frozenset((a.key, b.key))
        for a, b in itertools.combinations(rows, 2)
        if (a.perceptual ^ b.perceptual).bit_count() <= distance
    }


def found_pairs(rows: list[duplicates.HashedImage], distance: int, both: bool) -> dict[bytes, duplicates.Pair]:
    """What the graph's functions find, grouped in plain Python."""
    groups, buckets, pairs = {}, {}, []
    for item in rows:
        groups.setdefault(item.perceptual, []).append(item)
    for group in groups.items():
        for value in duplicates.same_hash(group, distance, both):
            if isinstance(value, duplicates.Pair):
                pairs.append(value)
            elif distance > 0:
                for bucket, member in duplicates.buckets(value, distance):
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


def test_exact_only_ignores_perceptual_hashes():
    rows = [image(0, 5, b"same"), image(1, 5, b"same"), image(2, 5, b"other")]
    assert set(found_pairs(rows, duplicates.EXACT_ONLY, both=False)) == {b"001"}
    assert set(found_pairs(rows, duplicates.EXACT_ONLY, both=True)) == {b"000", b"001"}
    assert {p.reason for p in found_pairs(rows, 0, both=False).values()} == {"duplicate", "near_duplicate"}


@pytest.mark.parametrize("distance", [-1, 0, 3, 8])
def test_reference_finds_the_closest(distance):
    reference_rows, asked = close_rows(1), close_rows(2) + close_rows(1)[:5]
    asked += [image(900 + i, r.perceptual ^ 0b101) for i, r in enumerate(reference_rows)]
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
    assert duplicates.Reference([], 3).find(image(1, 7)) is None


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
    rows = [image(1, 2**64 - 1), *(duplicates.HashedImage(n, b"/\xfe" + n, 12, 34, bytes(range(16)), 0) for n in names)]
    path = str(tmp_path / "rows.csv")
    write_atomically(path, duplicates.to_csv(rows))
    with tf.io.gfile.GFile(path, "rb") as file:
        assert list(duplicates.read_csv(file)) == rows
    ingest_images.write(path, b"a,b\n1,2\n")
    with open(path, "rb") as file, pytest.raises(ValueError, match="no column"):
        list(duplicates.read_csv(file))


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
    record_set = build(tree, tmp_path / "set", "--duplicates=keep_first", "--validation_fraction=0.3")
    assert refusals(tmp_path / "set") == {EXACT: "duplicate", NEAR: "near_duplicate"}
    assert sum(split.written for split in record_set.splits.values()) == 12
    with open(tmp_path / "set" / "duplicates.jsonl") as file:
        pairs = {r["key"]: r for r in map(json.loads, file)}
    assert pairs[EXACT]["other_key"] == FIRST and pairs[NEAR]["other_key"] == OLD
    assert pairs[EXACT]["distance"] == 0 and 0 <= pairs[NEAR]["distance"] <= 3
    assert pairs[NEAR]["path"] == f"{tree}/{NEAR}" and pairs[NEAR]["other_path"] == f"{tree}/{OLD}"


@pytest.fixture
def dropped(tree, tmp_path):
    """A build without any image that has a duplicate."""
    build(tree, tmp_path / "dropped", "--duplicates=drop")
    return tmp_path / "dropped"


def test_drop_removes_both_and_another_policy_over_it_equals_a_fresh_build(tree, dropped, tmp_path):
    assert set(refusals(dropped)) == {EXACT, FIRST, NEAR, OLD}
    build(tree, dropped, "--replace")
    build(tree, tmp_path / "fresh")
    assert ingest_images.contents(dropped) == ingest_images.contents(tmp_path / "fresh")


def test_report_removes_neither_and_exact_only_one(tree, tmp_path):
    record_set = build(tree, tmp_path / "report", "--duplicates=report")
    assert refusals(tmp_path / "report") == {} and record_set.split("train").written == 14
    with open(tmp_path / "report" / "duplicates.jsonl") as file:
        assert {r["key"] for r in map(json.loads, file)} == {EXACT, NEAR}
    build(tree, tmp_path / "exact", "--duplicates=keep_first", "--duplicate_distance=-1")
    assert refusals(tmp_path / "exact") == {EXACT: "duplicate"}


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """A record set of three images: the tree's first, its second at a lower quality, and a new one."""
    folder = tmp_path_factory.mktemp("evaluation")
    for name, seed, quality in (("0", 0, 92), ("1", 1, 60), ("new", 77, 75)):
        data = ingest_images.encode(ingest_images.picture(seed, 120, 90), quality=quality)
        ingest_images.write(folder / "source" / "e" / f"{name}.jpg", data)
    build(folder / "source", folder / "set", "--duplicates=report")
    return folder / "set"


@pytest.mark.parametrize("kind", ["set", "hashes"])
def test_evaluation_images_are_not_trained_on(tree, evaluation, tmp_path, kind):
    reference = evaluation
    if kind == "hashes":
        reference = tmp_path / "hashes.csv"
        parts = [p.read_text().split("\n", 2)[2] for p in sorted(evaluation.glob("*.hashes"))]
        reference.write_text("key,path,offset,size,content,perceptual\n" + "".join(parts))
    record_set = build(tree, tmp_path / "set", f"--remove_duplicates_of={reference}", "--duplicates=keep_first")
    found = refusals(tmp_path / "set")
    assert found["c0/00.jpg"] == "evaluation_duplicate" and found["c1/01.jpg"] == "evaluation_near_duplicate"
    assert set(found) == {"c0/00.jpg", "c1/01.jpg", EXACT, NEAR}
    assert record_set.split("train").rejected["evaluation_duplicate"] == 1
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
        list(duplicates.read_csv(file))


def test_a_reference_with_a_malformed_row_is_refused_clearly(tree, tmp_path, capsys):
    (tmp_path / "hashes.csv").write_text("key,content,perceptual\nk,short,\n")
    flags = [f"--input={tree}", f"--output_dir={tmp_path}/set", f"--remove_duplicates_of={tmp_path}/hashes.csv"]
    message = failure(capsys, *flags)
    assert f"--remove_duplicates_of: {tmp_path}/hashes.csv, line 2: content is 'short'; expected 32" in message
    assert len(message.splitlines()) == 1


def test_a_reference_with_a_damaged_record_is_refused_clearly(evaluation, tmp_path):
    copy = pathlib.Path(shutil.copytree(evaluation, tmp_path / "copy"))
    path = max(copy.glob("*-of-00002"), key=os.path.getsize)
    (examples,) = (part.examples for part in hashing.evaluation_parts(str(copy)) if part.path == str(path))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(BuildError, match=f"--remove_duplicates_of: {path}, record 0 is damaged"):
        list(hashing.hash_part(hashing.EvaluationPart(str(path), examples)))
    index = path.with_name(path.name + ".index")
    index.write_bytes(index.read_bytes()[:-8])
    with pytest.raises(BuildError, match=f"{index} is not the index of {examples} records"):
        list(hashing.hash_part(hashing.EvaluationPart(str(path), examples)))
    index.unlink()
    with pytest.raises(BuildError, match=f"{index} is missing"):
        list(hashing.hash_part(hashing.EvaluationPart(str(path), examples)))
    path.unlink()
    with pytest.raises(BuildError, match=f"--remove_duplicates_of: {path}"):
        list(hashing.hash_part(hashing.EvaluationPart(str(path), examples)))
