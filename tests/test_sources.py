"""Every kind of source: what is listed, where its bytes lie, and what is refused."""

import csv
import io
import json
import os
import pathlib
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.value_provider import RuntimeValueProvider

from beam import files, launch, sources
from beam.options import BuildError
from pipeline.data import manifest
from tests import ingest_images


def listed(path) -> dict:
    """Key to item, of the whole source."""
    source = sources.look(str(path))
    items = [item for part in source.parts for item in sources.items(part, source)]
    assert len({item.key for item in items}) == len(items)
    return {item.key.decode("utf-8", "backslashreplace"): item for item in items}


def content(item) -> bytes:
    """The bytes that an item points to."""
    return files.read(item.path.decode(), item.offset, item.size, limit=1 << 30)


def picture(seed: int) -> bytes:
    return ingest_images.encode(ingest_images.picture(seed))


def tar(path, members: list[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return str(path)


def test_lists_of_three_formats_say_the_same(tmp_path):
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
        assert sources.look(str(tmp_path / name)).is_multi_label
        item = listed(tmp_path / name)["a.jpg"]
        assert (item.labels, item.weights) == (("cat", "dog"), (0.25, 1.0))


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan")], [1.0, -1.0], ["heavy", 1]])
def test_weights_that_make_no_sense_refuse_the_row(tmp_path, weights):
    ingest_images.write(tmp_path / "a.jpg", b"x")
    row = {"path": "a.jpg", "labels": ["cat", "dog"], "label_weights": weights}
    (tmp_path / "list.jsonl").write_text(json.dumps(row) + "\n")
    assert listed(tmp_path / "list.jsonl")["a.jpg"].refusal[0] == "bad_row"


def test_parquet_without_the_columns_or_damaged(tmp_path):
    pq.write_table(pa.table({"file": ["a"], "label": ["b"]}), tmp_path / "columns.parquet")
    with pytest.raises(BuildError, match=r"found the columns \['file', 'label'\]"):
        sources.look(str(tmp_path / "columns.parquet"))
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BuildError, match="cannot be read"):
        sources.look(str(tmp_path / "damaged.parquet"))


def test_parquet_text_that_is_not_utf_8_refuses_its_row(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        ingest_images.write(tmp_path / name, b"x")
    paths = pa.array([b"\xff.jpg", b"a.jpg", b"b.jpg"]).cast(pa.binary()).view(pa.string())
    labels = pa.array([[b"c"], [b"c", b"\xfe"], [b"c"]], pa.list_(pa.binary())).view(pa.list_(pa.string()))
    pq.write_table(pa.table({"path": paths, "labels": labels}), tmp_path / "list.parquet")
    items = listed(tmp_path / "list.parquet")
    assert items.pop("b.jpg").labels == ("c",)
    assert [item.refusal[0] for item in items.values()] == ["bad_row", "bad_row"]


def test_a_pattern_names_several_lists(tmp_path):
    for i in range(3):
        ingest_images.write(tmp_path / f"{i}.jpg", b"x")
        (tmp_path / f"part-{i}.csv").write_text(f"path,label\n{i}.jpg,c\n")
    assert sorted(listed(tmp_path / "part-*.csv")) == ["0.jpg", "1.jpg", "2.jpg"]
    with pytest.raises(BuildError, match="does not exist"):
        sources.look(str(tmp_path / "nothing-*.csv"))


def test_lists_of_several_folders_have_different_keys(tmp_path):
    ingest_images.write(tmp_path / "c.jpg", b"c")
    for folder in ("p", "q"):
        ingest_images.write(tmp_path / folder / "a.jpg", folder.encode())
        rows = f"path,label,key\na.jpg,x,\n{tmp_path}/c.jpg,x,\na.jpg,x,{folder} own\n"
        ingest_images.write(tmp_path / folder / "list.csv", rows.encode())
    source = sources.look(f"{tmp_path}/*/list.csv")
    items = [item for part in source.parts for item in sources.items(part, source)]
    both = f"{tmp_path}/c.jpg".encode()
    assert [item.key for item in items] == [b"p/a.jpg", both, b"p own", b"q/a.jpg", both, b"q own"]
    assert content(items[0]) == b"p" and content(items[3]) == b"q"
    assert list(listed(tmp_path / "p" / "list.csv")) == ["a.jpg", f"{tmp_path}/c.jpg", "p own"]


def test_tars_of_several_folders_have_different_keys(tmp_path):
    for folder in ("p", "q/deep"):
        os.makedirs(tmp_path / "one" / folder)
        tar(tmp_path / "one" / folder / "0.tar", [("a.jpg", b"x"), ("a.cls", b"c")])
    assert list(listed(f"{tmp_path}/one/**/0.tar")) == ["p/0.tar/a.jpg", "q/deep/0.tar/a.jpg"]
    assert list(listed(f"{tmp_path}/one/q/*/0.tar")) == ["0.tar/a.jpg"]


def test_a_list_streams(tmp_path):
    """The second item comes before the rest of a list of 200,000 rows is read."""
    ingest_images.write(tmp_path / "a.jpg", b"x")
    with open(tmp_path / "list.csv", "w") as file:
        file.write("path,label\n")
        for i in range(200_000):
            file.write(f"{i}.jpg,c\n")
    source = sources.look(str(tmp_path / "list.csv"))
    items = sources.items(source.parts[0], source)
    assert next(items).key == b"0.jpg" and next(items).key == b"1.jpg"
    items.close()


def test_folders_as_deep_as_a_path_may_be(tmp_path):
    deep = tmp_path / "class" / ("d/" * 600)
    ingest_images.write(deep / "a.jpg", b"x")
    assert list(listed(tmp_path)) == [f"class/{'d/' * 600}a.jpg"]


def test_a_folder_is_listed_once_in_a_class_however_many_links_lead_to_it(tmp_path):
    names = [f"c{number:02d}" for number in range(12)]
    for name in names:
        ingest_images.write(tmp_path / name / "z" / f"{name}.jpg", b"x")
        for other in names:
            os.symlink(tmp_path / other, tmp_path / name / f"to_{other}")
    os.symlink("itself", tmp_path / "itself")
    items = listed(tmp_path)
    images = [key for key, item in items.items() if not item.refusal]
    assert len(images) == 12 * 12 and len(items) < 12 * 12 * 14
    assert sorted(key for key in images if key.startswith("c00/")) == [
        *(f"c00/to_c{number:02d}/z/c{number:02d}.jpg" for number in range(1, 12)),
        "c00/z/c00.jpg",
    ]
    assert items["c00/to_c00"].refusal == ("unreadable", "symbolic link to a folder that is listed already")


def test_webdataset_tar_with_classes_and_json(tmp_path):
    members = []
    for i in range(12):
        members += [(f"dir/{i:03d}.jpg", picture(i)), (f"dir/{i:03d}.cls", str(i % 11).encode())]
    source = tar(tmp_path / "a.tar", members)
    items = listed(source)
    assert items["a.tar/dir/005.jpg"].labels == ("5",)
    assert all(content(items[f"a.tar/dir/{i:03d}.jpg"]) == picture(i) for i in range(12))
    assert launch.main([f"--input={source}", f"--output_dir={tmp_path}/set", "--shards=1"]) == 0
    made = manifest.read(str(tmp_path / "set"))
    assert made.classes == tuple(str(i) for i in range(11)), "numbers are sorted by value"

    row = json.dumps({"labels": ["a", "b"], "label_weights": [1, 2]}).encode()
    source = tar(tmp_path / "b.tar", [("x.json", row), ("x.png", b"image")])
    assert sources.look(source).is_multi_label
    item = listed(source)["b.tar/x.png"]
    assert (item.labels, item.weights, content(item)) == (("a", "b"), (1.0, 2.0), b"image")


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
    reasons = {key.removeprefix("a.tar/"): item.refusal[0] for key, item in listed(path).items()}
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
    items = listed(path)
    assert any(item.refusal for item in items.values())
    ingest_images.write(tmp_path / "noise.tar", b"no tar at all" * 100)
    (noise,) = listed(tmp_path / "noise.tar").values()
    assert noise.refusal[0] == "unreadable"


SAMPLE_BYTES = 4 * 512  # of a sample with two members of less than 512 bytes


def five_samples(path) -> bytearray:
    """The bytes of a tar of five samples, which it also writes."""
    tar(path, [(f"{i}.{e}", b"1" * 100) for i in range(5) for e in ("jpg", "cls")])
    with open(path, "rb") as file:
        return bytearray(file.read())


def damage(items: dict) -> list[str]:
    """Details of what could not be listed."""
    return [item.refusal[1] for item in items.values() if item.refusal and item.refusal[0] == "unreadable"]


@pytest.mark.parametrize("sample", range(5))
@pytest.mark.parametrize("how", ["flipped", "cut inside", "zeros"])
def test_what_follows_a_damaged_header_is_not_lost_silently(tmp_path, sample, how):
    data, start = five_samples(tmp_path / "a.tar"), sample * SAMPLE_BYTES
    if how == "flipped":
        data[start + 3] ^= 1
    elif how == "zeros":
        data[start : start + 512] = bytes(512)
    ingest_images.write(tmp_path / "a.tar", data[: start + 200] if how == "cut inside" else data)
    items = listed(tmp_path / "a.tar")
    (detail,) = damage(items)
    assert detail.startswith("damaged tar") and f"from byte {start} on" in detail
    assert [key for key, item in items.items() if not item.refusal] == [f"a.tar/{i}.jpg" for i in range(sample)]


def test_a_tar_ends_with_zeros_or_where_a_member_ends(tmp_path):
    data = five_samples(tmp_path / "a.tar")
    for end in (5 * SAMPLE_BYTES, 5 * SAMPLE_BYTES + 512, 5 * SAMPLE_BYTES + 600, len(data)):
        ingest_images.write(tmp_path / "a.tar", data[:end])
        items = listed(tmp_path / "a.tar")
        assert len(items) == 5 and not any(item.refusal for item in items.values())
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
    items = listed(tmp_path / "a.tar")
    assert len(items) == 6 and len(damage(items)) == 1


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
    items = listed(path)
    assert items["a.tar/0.jpg"].refusal[0] == "bad_sample" and items["a.tar/1.jpg"].labels == ("c",)


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
    items = listed(f"tfds:{tmp_path}/train")
    assert items[f"{shard.name}__4"].labels == ("ape",)
    assert [content(item) for item in items.values()] == [picture(i) for i in range(6)]
    output = tmp_path / "set"
    assert launch.main([f"--input=tfds:{tmp_path}/train", f"--output_dir={output}", "--shards=1"]) == 0
    assert manifest.read(str(output)).classes == tuple(names)
    with pytest.raises(BuildError, match="test"):
        sources.look(f"tfds:{tmp_path}/test")
    with pytest.raises(BuildError, match="download_and_prepare"):
        sources.look("tfds:no_such_data_set/train")
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size - 700)
    last = list(listed(f"tfds:{tmp_path}/train").values())[-1]
    assert last.refusal is not None


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
        sources.look(path)
    with pytest.raises(BuildError, match=r"--label_feature=family: no ClassLabel of that name .*objects/label"):
        sources.look(path, label_feature="family")
    with pytest.raises(BuildError, match="--image_feature=mask: no Image of that name"):
        sources.look(path, image_feature="mask", label_feature="fine")
    output = tmp_path / "coarse"
    flags = [f"--input={path}", f"--output_dir={output}", "--shards=1", "--image_feature=image"]
    assert launch.main([*flags, "--label_feature=coarse"]) == 0
    made = manifest.read(str(output))
    assert made.classes == ("tree", "fish") and made.label_kind == "single" and made.splits["train"].written == 4
    source = sources.look(path, label_feature="objects/label")
    (items,) = [list(sources.items(part, source)) for part in source.parts]
    found = sorted((item.labels, item.weights, item.refusal is None) for item in items)
    assert source.is_multi_label
    assert found == [((), (), False), (("fin",), (1.0,), True), (("fin",), (1.0,), True), (("leaf",), (1.0,), True)]


def test_a_tfds_set_that_names_its_label_needs_no_choice(tmp_path):
    builder = TwoNamesWithAUsualOne(data_dir=str(tmp_path))
    builder.download_and_prepare()
    labels = [item.labels for item in listed(f"tfds:{builder.data_dir}/train").values()]
    assert sorted(labels) == [("elm",), ("oak",), ("trout",), ("trout",)]


def test_a_tfds_set_in_another_format_is_refused_with_what_to_do(tmp_path):
    builder = TwoNames(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    with pytest.raises(BuildError, match=r"stored as array_record; expected tfrecord.*file_format='tfrecord'"):
        sources.look(f"tfds:{builder.data_dir}/train")


def test_features_are_chosen_from_tfds_sets_alone(tmp_path, capsys):
    assert launch.main([f"--input={tmp_path}", f"--output_dir={tmp_path}/set", "--label_feature=fine"]) == 1
    assert "--label_feature chooses from a TFDS set" in capsys.readouterr().err


class ShelfFileSystem(FileSystem):
    """A file system that Beam knows by the scheme `shelf://`, over a folder on disk."""

    root = ""

    @classmethod
    def scheme(cls):
        return "shelf"

    def _real(self, path):
        return path.replace(f"{self.scheme()}://", f"{self.root}/")

    def _list(self, dir_or_prefix):
        for folder, _, names in os.walk(self._real(dir_or_prefix)):
            for name in sorted(names):
                path = os.path.join(folder, name)
                yield FileMetadata(path.replace(f"{self.root}/", f"{self.scheme()}://"), os.path.getsize(path))

    def open(self, path, mime_type=None, compression_type=None):
        try:
            return open(self._real(path), "rb")
        except OSError as error:
            raise BeamIOError("Open failed", {path: error}) from error

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def exists(self, path):
        return os.path.exists(self._real(path))

    def has_dirs(self):
        return False

    def mkdirs(self, path):
        raise NotImplementedError

    def metadata(self, path):
        return FileMetadata(path, os.path.getsize(self._real(path)))

    create = copy = rename = delete = size = last_updated = checksum = mkdirs


def test_another_file_system_holds_the_same_tree_and_list(tmp_path, monkeypatch):
    monkeypatch.setattr(ShelfFileSystem, "root", str(tmp_path))
    ingest_images.folder_tree(tmp_path / "box", images=6, classes=2)
    ingest_images.write(tmp_path / "box" / "beside.txt", b"x")
    local, remote = listed(tmp_path / "box"), listed("shelf://box")
    assert remote.keys() == local.keys()
    for key, item in remote.items():
        assert item.path == b"shelf://box/" + item.key
        assert item.labels == local[key].labels and item.refusal == local[key].refusal
        assert content(item) == content(local[key])
    (tmp_path / "box" / "list.csv").write_text("path,label\nclass_0/000.png,a\nshelf://box/class_1/001.jpg,b\n")
    items = listed("shelf://box/list.csv")
    assert content(items["class_0/000.png"]) == content(local["class_0/000.png"])
    assert content(items["shelf://box/class_1/001.jpg"]) == content(local["class_1/001.jpg"])
    output = tmp_path / "set"
    assert launch.main(["--input=shelf://box/list.csv", f"--output_dir={output}", "--shards=1"]) == 0
    for nothing in ("shelf://nothing", "shelf://nothing.csv"):
        with pytest.raises(BuildError, match="does not exist"):
            sources.look(nothing)


class LockerFileSystem(ShelfFileSystem):
    """The same under `locker://`, for those who come with the pipeline's options, as `hdfs://` wants them."""

    def __init__(self, pipeline_options):
        if pipeline_options is None:
            raise ValueError("pipeline_options is not set")
        super().__init__(pipeline_options)

    @classmethod
    def scheme(cls):
        return "locker"


def test_a_file_system_has_its_flags_before_the_first_look(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ShelfFileSystem, "root", str(tmp_path))
    for place, name in ((FileSystems, "_pipeline_options"), (RuntimeValueProvider, "runtime_options")):
        monkeypatch.setattr(place, name, None)  # as in a process that has run no job
    ingest_images.write(tmp_path / "box" / "0.jpg", picture(1))
    (tmp_path / "box" / "list.csv").write_text("path,label\n0.jpg,c\n")
    with pytest.raises(BuildError, match=r"--input=locker://box/list\.csv is out of reach: pipeline_options is not"):
        sources.look("locker://box/list.csv")
    assert launch.main(["--input=locker://box/list.csv", f"--output_dir={tmp_path}/set", "--shards=1"]) == 0
    for path in ("none://bucket/images", "none://bucket/list.csv", "none://bucket/0.tar"):
        assert launch.main([f"--input={path}", f"--output_dir={tmp_path}/set"]) == 1
        assert f"--input={path} is out of reach: Unable to get filesystem" in capsys.readouterr().err


def test_class_folders_in_every_encoding(tmp_path):
    root = os.fsencode(tmp_path)
    for name in ("été".encode(), b"\xff\xfe", "日本".encode(), b"a b\n", b"1"):
        os.makedirs(root + b"/" + name)
        with open(root + b"/" + name + b"/x.jpg", "wb") as file:
            file.write(picture(1))
    output = tmp_path / "set"
    assert launch.main([f"--input={tmp_path}", f"--output_dir={output}", "--shards=1"]) == 0
    made = manifest.read(str(output))
    assert set(made.classes) == {"été", r"\xff\xfe", "日本", r"a b\n", "1"}
    assert made.split("train").written == 5
    builder = tfds.builder_from_directory(str(output))
    assert builder.info.features["label"].names == list(made.classes)
    assert np.unique([e["label"] for e in builder.as_dataset(split="train").as_numpy_iterator()]).size == 5
