"""Names of classes and keys as people see them: a name may be missing, of any length, and hold any character."""

from collections.abc import Sequence


def of_classes(names: Sequence[str], classes: int) -> list[str]:
    """A name for each of `classes` logits; those that the record set does not name are numbered."""
    return [*names, *(f"(class {label}, without a name)" for label in range(len(names), classes))]


def short(text: str, longest: int = 60) -> str:
    """The text on one line of at most `longest` characters; what is too long loses its middle."""
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[len(text) - (longest - 1) // 2 :]}"
    return text.encode("utf-8", "backslashreplace").decode().replace("\n", " ")
