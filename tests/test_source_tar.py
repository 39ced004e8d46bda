"""WebDataset tar shards as a source: what is listed, and what damage and hostile headers do."""

import io
import json
import os
import tarfile

import pytest

from beam import files
from beam.sources import registry
from tests import ingest_images
from tests.source_listing import content, listed, picture


def tar(path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def test_tars_of_several_folders_have_different_keys(tmp_path):
    for folder in ("p", "q/deep"):
        os.makedirs(tmp_path / "one" / folder)
        tar(tmp_path / "one" / folder / "0.tar", [("a.jpg", b"x"), ("a.cls", b"c")])
    assert list(listed(f"{tmp_path}/one/**/0.tar")) == ["p/0.tar/a.jpg", "q/deep/0.tar/a.jpg"]
    assert list(listed(f"{tmp_path}/one/q/*/0.tar")) == ["0.tar/a.jpg"]


def test_webdataset_tar_with_classes_and_json(tmp_path):
    members = []
    for i in range(12):
        members += [(f"dir/{i:03d}.jpg", picture(i)), (f"dir/{i:03d}.cls", str(i % 11).encode())]
    source = tar(tmp_path / "a.tar", members)
    examples = listed(source)
    assert examples["a.tar/dir/005.jpg"].labels == ("5",)
    assert all(content(examples[f"a.tar/dir/{i:03d}.jpg"]) == picture(i) for i in range(12))
    numbers = [str(i) for i in range(11)]
    assert registry.open_source(source).label_order(set(numbers)) == numbers, "numbers are sorted by value"

    row = json.dumps({"labels": ["a", "b"], "label_weights": [1, 2]}).encode()
    source = tar(tmp_path / "b.tar", [("x.json", row), ("x.png", b"image")])
    assert registry.open_source(source).is_multi_label
    example = listed(source)["b.tar/x.png"]
    assert (example.labels, example.weights, content(example)) == (("a", "b"), (1.0, 2.0), b"image")


def test_tar_members_that_cannot_be_samples(tmp_path):
    path = tar(
        tmp_path / "a.tar",
        [
            ("../../etc/up.jpg", b"x"),
            ("../../etc/up.cls", b"1"),
            ("/etc/root.jpg", b"x"),
            ("/etc/root.cls", b"1"),
            ("alone.cls", b"1"),
            ("nolabel.jpg", b"x"),
            ("two.jpg", b"x"),
            ("two.png", b"x"),
            ("two.cls", b"1"),
            ("bad.jpg", b"x"),
            ("bad.json", b"{"),
            ("list.jpg", b"x"),
            ("list.json", b"[]"),
            ("binary.jpg", b"x"),
            ("binary.cls", b"\xff\xfe"),
        ],
    )
    with tarfile.open(path, "a") as archive:
        for kind, name in ((tarfile.SYMTYPE, "soft"), (tarfile.LNKTYPE, "hard")):
            link = tarfile.TarInfo(f"{name}.jpg")
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
            label = tarfile.TarInfo(f"{name}.cls")
            label.size = 1
            archive.addfile(label, io.BytesIO(b"1"))
    reasons = {key.removeprefix("a.tar/"): example.refusal[0] for key, example in listed(path).items()}
    assert reasons == {
        "../../etc/up.jpg": "outside",
        "/etc/root.jpg": "outside",
        "alone.cls": "bad_sample",
        "nolabel.jpg": "no_label",
        "two.jpg": "bad_sample",
        "bad.jpg": "bad_sample",
        "list.jpg": "bad_sample",
        "binary.jpg": "bad_sample",
        "soft.jpg": "outside",
        "hard.jpg": "outside",
    }


@pytest.mark.parametrize("cut", [100, 700, 1300, 3000])
def test_a_damaged_tar_gives_what_is_whole_and_says_so(tmp_path, cut):
    path = tar(tmp_path / "a.tar", [(f"{i}.{e}", b"1" * 600) for i in range(3) for e in ("jpg", "cls")])
    with open(path, "r+b") as file:
        file.truncate(cut)
    examples = listed(path)
    assert any(example.refusal for example in examples.values())
    ingest_images.write(tmp_path / "noise.tar", b"no tar at all" * 100)
    (noise,) = listed(tmp_path / "noise.tar").values()
    assert noise.refusal[0] == "unreadable"


SAMPLE_BYTES = 4 * 512  # of a sample with two members of less than 512 bytes


def five_samples(path) -> bytearray:
    """The bytes of a tar of five samples, which it also writes."""
    tar(path, [(f"{i}.{e}", b"1" * 100) for i in range(5) for e in ("jpg", "cls")])
    with open(path, "rb") as file:
        return bytearray(file.read())


def damage(examples: dict) -> list[str]:
    """Details of what could not be listed."""
    return [
        example.refusal[1] for example in examples.values() if example.refusal and example.refusal[0] == "unreadable"
    ]


@pytest.mark.parametrize("sample", range(5))
@pytest.mark.parametrize("how", ["flipped", "cut inside", "zeros"])
def test_what_follows_a_damaged_header_is_not_lost_silently(tmp_path, sample, how):
    data, start = five_samples(tmp_path / "a.tar"), sample * SAMPLE_BYTES
    if how == "flipped":
        data[start + 3] ^= 1
    elif how == "zeros":
        data[start : start + 512] = bytes(512)
    ingest_images.write(tmp_path / "a.tar", data[: start + 200] if how == "cut inside" else data)
    examples = listed(tmp_path / "a.tar")
    (detail,) = damage(examples)
    assert detail.startswith("damaged tar") and f"from byte {start} on" in detail
    assert [key for key, example in examples.items() if not example.refusal] == [
        f"a.tar/{i}.jpg" for i in range(sample)
    ]


def test_a_tar_ends_with_zeros_or_where_a_member_ends(tmp_path):
    data = five_samples(tmp_path / "a.tar")
    for end in (5 * SAMPLE_BYTES, 5 * SAMPLE_BYTES + 512, 5 * SAMPLE_BYTES + 600, len(data)):
        ingest_images.write(tmp_path / "a.tar", data[:end])
        examples = listed(tmp_path / "a.tar")
        assert len(examples) == 5 and not any(example.refusal for example in examples.values())
    ingest_images.write(tmp_path / "a.tar", data + data)
    (detail,) = damage(listed(tmp_path / "a.tar"))
    assert f"from byte {5 * SAMPLE_BYTES} on" in detail, "the second of two tars in one file"


def tar_header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "header",
    [
        tar_header("long", 512, tarfile.GNUTYPE_LONGNAME) + b"n" * 512,
        tar_header("long", 1 << 70, tarfile.GNUTYPE_LONGNAME),
        tar_header("back", -4096),
    ],
    ids=["chained names", "a name of 2**70 bytes", "negative size"],
)
def test_hostile_tar_headers_are_damage(tmp_path, header):
    data = five_samples(tmp_path / "a.tar")[: 5 * SAMPLE_BYTES]
    ingest_images.write(tmp_path / "a.tar", data + header * 2000)
    examples = listed(tmp_path / "a.tar")
    assert len(examples) == 6 and len(damage(examples)) == 1


def test_a_tar_member_that_claims_a_petabyte_is_refused_unread(tmp_path):
    data = five_samples(tmp_path / "a.tar")[: 5 * SAMPLE_BYTES]
    label = tar_header("x.cls", 1) + b"1".ljust(512, b"\0")
    ingest_images.write(tmp_path / "a.tar", data + label + tar_header("x.jpg", 1 << 50))
    claimed = listed(tmp_path / "a.tar")["a.tar/x.jpg"]
    assert claimed.size == 1 << 50 and not claimed.refusal
    with pytest.raises(files.TooLarge, match="1125899906842624 bytes; at most 1073741824"):
        content(claimed)


def test_nested_json_in_the_first_sample_of_a_tar_is_a_bad_sample(tmp_path):
    nested = b"[" * 100_000
    path = tar(tmp_path / "a.tar", [("0.jpg", b"x"), ("0.json", nested), ("1.jpg", b"x"), ("1.cls", b"c")])
    examples = listed(path)
    assert examples["a.tar/0.jpg"].refusal[0] == "bad_sample" and examples["a.tar/1.jpg"].labels == ("c",)
