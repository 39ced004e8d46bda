"""The table of sources: `--input`, its help and its messages come from it, and a new source needs nothing else."""

import dataclasses
import os

import pytest

from beam import launch
from beam.errors import BuildError
from beam.examples import SourceExample, name_bytes
from beam.sources import registry
from beam.sources.source import Source
from tests import ingest_images
from tests.ingest_builds import build, failure, records


@dataclasses.dataclass(frozen=True)
class FlatSource(Source):
    """Images in one folder without classes: `flat:FOLDER`, all of one class."""

    name = "a flat folder"
    help = "flat:FOLDER"
    flags = {"flat_class": "The class of all images."}  # noqa: RUF012

    label: str = "all"

    @classmethod
    def recognizes(cls, path):
        return path.startswith("flat:")

    @classmethod
    def open(cls, path, flags):
        return cls(path, (path.removeprefix("flat:"),), label=flags.get("flat_class", "all"))

    def examples(self, part):
        for file in sorted(os.listdir(part)):
            path = name_bytes(os.path.join(part, file))
            yield SourceExample(name_bytes(file), path, labels=(self.label,), weights=(1.0,))


def test_a_new_source_is_a_class_in_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(registry, "SOURCES", (FlatSource, *registry.SOURCES))
    for i in range(3):
        ingest_images.write(tmp_path / "images" / f"{i}.jpg", ingest_images.encode(ingest_images.picture(i)))
    record_set = build(f"flat:{tmp_path}/images", tmp_path / "set", "--flat_class=bird")
    assert record_set.classes == ("bird",)
    assert sorted(row["key"] for row in records(tmp_path / "set", "train")) == [b"0.jpg", b"1.jpg", b"2.jpg"]
    assert "flat:FOLDER" in failure(capsys, "--input=/nowhere", f"--output_dir={tmp_path}/other")
    message = failure(capsys, f"--input={tmp_path}", f"--output_dir={tmp_path}/other", "--flat_class=x")
    assert "--flat_class is for a flat folder" in message
    with pytest.raises(SystemExit):
        launch.main(["--help"])
    shown = capsys.readouterr().out
    assert "flat:FOLDER" in shown and "--flat_class" in shown and "The class of all images." in shown


@pytest.mark.parametrize("source", registry.SOURCES, ids=lambda source: source.__name__)
def test_every_source_is_in_the_message_of_what_is_expected(source):
    with pytest.raises(BuildError) as error:
        registry.open_source("/nowhere")
    assert source.help in str(error.value) and "/nowhere does not exist" in str(error.value)
