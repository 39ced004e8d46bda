"""The messages that docs/troubleshooting.md quotes are those of the code."""

import ast
import pathlib
import re

import pytest

from tools import build_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
LINES = 24  # of a stage on the page: a screen


def quoted():
    """The messages: code before the first colon of an item, one or several joined by `or`."""
    for item in re.findall(r"^- (.*?)(?=^- |^#|\Z)", PAGE, re.MULTILINE | re.DOTALL):
        item = " ".join(item.split())
        if head := re.match(r"(`[^`]+`(?: or `[^`]+`)*):", item):
            yield from re.findall(r"`([^`]+)`", head[1])


def strings(tree):
    """The strings of a file with … for what varies, but for its docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def messages():
    """Every string of the library, and what the Makefile prints."""
    paths = [path for path in build_file.python_files() if path.startswith(("beam/", "pipeline/"))]
    trees = (ast.parse((ROOT / path).read_text()) for path in paths)
    makefile = re.sub(r'" \\\n\s*"', " ", (ROOT / "Makefile").read_text())
    return {*(text for tree in trees for text in strings(tree)), *re.findall('echo "(.*)"', makefile)}


MESSAGES = messages()


def stands_in_the_code(message):
    pattern = ".*?".join(re.escape(part.strip()) for part in message.split("…"))
    return any(re.search(pattern, text, re.DOTALL) for text in MESSAGES)


@pytest.mark.parametrize("message", quoted())
def test_the_message_stands_in_the_code(message):
    assert stands_in_the_code(message)


def test_other_messages_do_not():
    assert not stands_in_the_code("The loss is not finite at step …, where the momentum is …")


def test_every_stage_has_messages_and_fits_a_screen():
    stages = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    assert len(stages) == 7
    assert all(len(stage.splitlines()) <= LINES and stage.count("\n- `") >= 2 for stage in stages)
    assert len(list(quoted())) >= 40
