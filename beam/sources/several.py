"""Several sources as one: the inputs of a build, each with its split."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from beam.errors import BuildError
from beam.examples import SourceExample, name_bytes
from beam.sources.source import Source


class Member(NamedTuple):
    """One of the sources.

    Attributes:
      source: it.
      split: of all its images; None: as the source itself says.
      prefix: what its keys begin with, so that no two members have the same.
    """

    source: Source
    split: str | None
    prefix: str


@dataclasses.dataclass(frozen=True)
class SeveralSources(Source):
    """The parts of all `members`; a part is named `NUMBER/PART`, with the number of its member."""

    members: tuple[Member, ...] = ()

    @classmethod
    def of(cls, members: list[Member]) -> "SeveralSources":
        """Several sources as one.

        Raises:
          BuildError: they do not fit together.
        """
        first = members[0].source
        for source in (member.source for member in members):
            if source.is_multi_label != first.is_multi_label:
                single, several = (first, source) if source.is_multi_label else (source, first)
                raise BuildError(
                    f"{single.path} gives one label per image, and {several.path} several: expected the same in all "
                    "splits. Give both `labels`, or both `label`."
                )
        ordered = {member.source.classes: member.source.path for member in members if member.source.classes}
        if len(ordered) > 1:
            (one, here), (other, there), *_ = ordered.items()
            names = ", ".join(sorted(set(one) ^ set(other))[:3]) or "the same names in another order"
            raise BuildError(f"{here} and {there} have different classes ({names}): build them as two sets.")
        return cls(
            first.path,
            tuple(f"{number}/{part}" for number, member in enumerate(members) for part in member.source.parts),
            first.is_multi_label,
            next(iter(ordered), None),
            notes=tuple(note for member in members for note in member.source.notes),
            members=tuple(m._replace(source=dataclasses.replace(m.source, parts=())) for m in members),
        )

    @classmethod
    def recognizes(cls, path: str) -> bool:
        """Never: it is made of others."""
        return False

    @classmethod
    def open(cls, path: str, flags: Mapping[str, str]) -> Source:
        """Not to be called: it is made of others."""
        raise NotImplementedError

    def examples(self, part: str) -> Iterator[SourceExample]:
        """The examples of one part of a member."""
        number, _, name = part.partition("/")
        source, split, prefix = self.members[int(number)]
        for example in source.examples(name):
            yield example._replace(key=name_bytes(prefix) + example.key, split=split or example.split)

    def label_order(self, names: Collection[str]) -> list[str]:
        """As the members order them, if they are of one kind."""
        kinds = {type(member.source) for member in self.members}
        return self.members[0].source.label_order(names) if len(kinds) == 1 else super().label_order(names)
