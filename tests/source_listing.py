"""What sources list, for the tests of each kind of source."""

from beam import record_files
from beam.examples import SourceExample
from beam.sources import registry
from tests import ingest_images


def stream(path) -> list[SourceExample]:
    """The examples of the whole source, in the order of its parts."""
    source = registry.open_source(str(path))
    return [example for part in source.parts for example in source.examples(part)]


def listed(path) -> dict[str, SourceExample]:
    """Key to example, of the whole source."""
    examples = stream(path)
    assert len({example.key for example in examples}) == len(examples)
    return {example.key.decode("utf-8", "backslashreplace"): example for example in examples}


def content(example: SourceExample) -> bytes:
    """The bytes that an example points to."""
    return record_files.read(example.path.decode(), example.offset, example.size, limit=1 << 30)


def picture(seed: int) -> bytes:
    """A small JPEG."""
    return ingest_images.encode(ingest_images.picture(seed))
