"""The kinds of sources, and which of them `--input` names."""

from collections.abc import Mapping

from beam import files
from beam.errors import BuildError
from beam.sources.folder import FolderSource
from beam.sources.source import Source
from beam.sources.table import TableSource
from beam.sources.tar import TarSource
from beam.sources.tfds import TfdsSource

SOURCES: tuple[type[Source], ...] = (TfdsSource, TableSource, TarSource, FolderSource)  # the first that fits is taken


def expected() -> str:
    """How `--input` may be written."""
    *others, last = (source.help for source in SOURCES)
    return f"{', '.join(others)} or {last}"


def flags() -> dict[str, str]:
    """The flags that only some kinds of sources take, with their help texts."""
    return {flag: text for source in SOURCES for flag, text in source.flags.items()}


def open_source(path: str, flags: Mapping[str, str] | None = None) -> Source:
    """Opens the source that `--input=path` names, with values of `flags()`, of which empty ones were not given.

    Raises:
      BuildError: it is missing, empty, out of reach, or not as expected.
    """
    given = {flag: value for flag, value in (flags or {}).items() if value}
    try:
        kind = next((source for source in SOURCES if source.recognizes(path)), None)
        if kind is None:
            raise BuildError(f"--input={path} {_state(path)}: expected {expected()}.")
        for flag in given.keys() - kind.flags.keys():
            owners = " or ".join(source.name for source in SOURCES if flag in source.flags)
            raise BuildError(f"--{flag} is for {owners}, and --input={path} is {kind.name}: remove the flag.")
        return kind.open(path, given)
    except FileNotFoundError as error:
        raise BuildError(f"--input={path} does not exist: expected {expected()}.") from error
    except OSError as error:
        raise BuildError(f"--input={path} is out of reach: {error}") from error


def _state(path: str) -> str:
    return "is a file" if files.exists(path) else "does not exist"
