"""The commands that README and the guides show: their files and targets exist, their flags and settings are known."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from pipeline import configure, registry

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands():
    """(page, words) of every command in a fenced block of shell."""
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield page.name, words


COMMANDS = list(commands())


def flags_of(program, *subcommand):
    """The flags that the help of a program, or of one of its subcommands, names."""
    words = [sys.executable, program, *subcommand, "--helpfull"]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return set(re.findall(r"--(?:\[no\])?([a-z_]+)", shown.stdout + shown.stderr))


def test_there_are_commands():
    assert len([words for page, words in COMMANDS if page == "README.md"]) >= 8


@pytest.mark.parametrize(("page", "words"), [c for c in COMMANDS if c[1][0] == "make"])
def test_make_targets_exist(page, words):
    assert {word for word in words[1:] if "=" not in word} <= MAKE_TARGETS


def programs():
    """(program, subcommand if it has any) of every Python program shown."""
    shown = {(w[1], *[x for x in w[2:3] if x.isidentifier()]) for _, w in COMMANDS if w[0] == "python"}
    return sorted(names for names in shown if names[0].endswith(".py"))


@pytest.mark.parametrize("names", programs(), ids=" ".join)
def test_programs_exist_and_know_the_flags_shown(names):
    known = flags_of(*names)
    for page, words in COMMANDS:
        if words[1 : 1 + len(names)] == list(names):
            shown = {word[2:].split("=")[0] for word in words[2:] if word.startswith("--")}
            assert shown <= known, f"{page}: {' '.join(names)} does not know {shown - known}"


@pytest.mark.parametrize(("page", "words"), [c for c in COMMANDS if c[1][:2] == ["python", "pipeline/main.py"]])
def test_gin_commands_parse(page, words):
    files = [word.split("=", 1)[1] for word in words if word.startswith("--gin_file=")]
    params = [word.split("=", 1)[1] for word in words if word.startswith("--gin_param=")]
    if params and not files:  # over the settings of the run in --model_dir
        files = ["gin/finetune_own.gin"]
    registry.register()
    configure.load([str(ROOT / file) for file in files], params, entry="main", tasks=registry.TASKS)


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist."


def test_the_design_names_every_file():
    named = set(re.findall(r"`(?:\w+/)*(\w+\.py)`", (ROOT / "docs" / "design.md").read_text()))
    files = {path.name for folder in ("beam", "pipeline") for path in (ROOT / folder).rglob("*.py")}
    assert files - named == {"__init__.py"}
