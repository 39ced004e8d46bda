"""The kinds of sources, and which of them `--input` names."""

import dataclasses
import os
from collections.abc import Mapping

from beam import files
from beam.errors import BuildError
from beam.sources.folder import FolderSource
from beam.sources.several import Member, SeveralSources
from beam.sources.source import Source
from beam.sources.table import TableSource
from beam.sources.tar import TarSource
from beam.sources.tfds import TfdsSource
from beam.splits import TRAIN

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
        kind = _kind(path)
        if kind is None:
            raise BuildError(f"--input={path} {_state(path)}: expected {expected()}.")
        for flag in given.keys() - kind.flags.keys():
            owners = " or ".join(source.name for source in SOURCES if flag in source.flags)
            raise BuildError(f"--{flag} is for {owners}, and --input={path} is {kind.name}: remove the flag.")
        return kind.open(path, given)
    except FileNotFoundError as error:
        raise BuildError(f"--input={path} does not exist: expected {expected()}.") from error
    except OSError as error:
        raise _out_of_reach(path, error) from error


def open_inputs(inputs: Mapping[str, str], flags: Mapping[str, str] | None = None, auto: bool = True) -> Source:
    """Opens the inputs of a build.

    Args:
      inputs: split to what its flag names: `--input` for train, `--validation_input`, `--test_input`.
      flags: see `open_source`.
      auto: whether `--input` is split as it says itself.

    Raises:
      BuildError: one of them is missing, empty or out of reach; or they do not fit together.
    """
    members = _members(inputs[TRAIN], flags, auto) if TRAIN in inputs else []
    for split, path in inputs.items():
        if split == TRAIN:
            continue
        if any(member.split == split for member in members):
            raise BuildError(
                f"--{split}_input={path} is given, and --input={inputs[TRAIN]} has a {split} split of its own: remove "
                "the flag, or name the train split alone as --input."
            )
        try:
            source = dataclasses.replace(open_source(path, flags), is_split=False)
        except BuildError as error:
            raise BuildError(str(error).replace(f"--input={path}", f"--{split}_input={path}")) from error
        members.append(Member(source, split, f"{split}/"))
    only = members[0]
    return only.source if len(members) == 1 and not (only.prefix or only.split) else SeveralSources.of(members)


def _members(path: str, flags: Mapping[str, str] | None, auto: bool) -> list[Member]:
    """`--input`, whole or in the splits that it has."""
    try:
        kind = _kind(path)
        found = kind.splits_of(path) if kind and auto else []
    except OSError as error:
        raise _out_of_reach(path, error) from error
    if not found:
        return [Member(dataclasses.replace(open_source(path, flags), is_split=auto), None, "")]
    names = ", ".join(f"{os.path.basename(own)} is {split}" for split, _, own in found)
    note = f"Splits of {path}: {names} (--splits=none reads it without splits)."
    members = [Member(open_source(own, flags), split, prefix) for split, prefix, own in found]
    members += [Member(source, members[0].split, "") for source in kind.beside_splits(path)] if kind else []
    first = members[0]
    return [first._replace(source=dataclasses.replace(first.source, notes=(note,))), *members[1:]]


def _out_of_reach(path: str, error: OSError) -> BuildError:
    scheme = path.partition("://")[0]
    extra = {"gs": "gcp", "s3": "aws", "hdfs": "hadoop", "azfs": "azure"}.get(scheme)
    hint = f" Reading {scheme}:// needs `pip install 'apache-beam[{extra}]'`, and access." if extra else ""
    return BuildError(f"--input={path} is out of reach: {str(error).rstrip('.')}.{hint}")


def _kind(path: str) -> type[Source] | None:
    return next((source for source in SOURCES if source.recognizes(path)), None)


def _state(path: str) -> str:
    return "is a file" if files.exists(path) else "does not exist"
