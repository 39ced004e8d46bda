"""What every source of labelled images offers."""

import abc
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

from beam.examples import SourceExample


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """Labelled images in parts, each of which one worker lists as a stream.

    A new kind of source is a subclass in a file of this folder, listed in `registry.SOURCES`. Every subclass has the
    class attributes `name` (for messages), `help` (how `--input` is written for it) and, if it takes flags of its own,
    `flags` (flag name to help text).

    Attributes:
      path: what `--input` says.
      parts: names of the parts; bytes that are not UTF-8 are surrogates.
      is_multi_label: whether an image has any number of labels, rather than one.
      classes: class names in label order, where the source has an order of its own.
      root: the folder, with a slash at its end, that holds all parts, of which keys name the path below it.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    flags: ClassVar[Mapping[str, str]] = {}

    path: str
    parts: tuple[str, ...]
    is_multi_label: bool = False
    classes: tuple[str, ...] | None = None
    root: str = ""

    @classmethod
    @abc.abstractmethod
    def recognizes(cls, path: str) -> bool:
        """Whether `--input=path` names a source of this kind; the first such kind is taken."""

    @classmethod
    @abc.abstractmethod
    def open(cls, path: str, flags: Mapping[str, str]) -> "Source":
        """Opens the source at `path`, with the values of its own flags.

        Raises:
          BuildError: it is empty, or not as expected.
          FileNotFoundError: there is no such file.
          OSError: it cannot be reached.
        """

    @abc.abstractmethod
    def examples(self, part: str) -> Iterator[SourceExample]:
        """Lists one of the parts; an image that cannot be listed becomes an example with a refusal."""

    def label_order(self, names: Collection[str]) -> list[str]:
        """Label order of class names that the source does not order itself: numbers by value, else by name."""
        if all(name.isdecimal() for name in names):
            return sorted(names, key=lambda name: (int(name), name))
        return sorted(names)
