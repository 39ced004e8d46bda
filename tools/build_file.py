"""Writes BUILD: a Bazel target for each module and test, whose deps are what the file imports.

    python tools/build_file.py            rewrites BUILD
    python tools/build_file.py --check    says whether BUILD is up to date, by its exit code

BUILD states the project's own arrows only. Packages from PyPI come with the Python environment that
requirements.txt describes, so they are no deps.
"""

import argparse
import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("beam", "benchmarks", "examples", "pipeline", "tests", "tools")
TEST_RUNNER = "tools/run_tests.py"

HEADER = '''"""A target for each module and test; deps are their imports. Made by `make build-file`: do not edit."""

load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])

filegroup(
    name = "sources",
    srcs = glob([
        "**/*.py",
        "docs/**",
        "gin/**/*.gin",
        "pipeline/**/*.json",
        "tests/**",
        "*.md",
        "*.toml",
        "*.txt",
    ]) + ["BUILD"],
)
'''


def python_files(root: pathlib.Path = ROOT) -> list[str]:
    """The project's Python files that hold code, as sorted paths below `root` with '/' between names."""
    paths = (path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return sorted(path.relative_to(root).as_posix() for path in paths if path.read_text().strip())


def imported_names(source: str) -> set[str]:
    """Every dotted name that an import statement anywhere in `source` may load.

    `from a.b import c` counts as `a.b` and `a.b.c`, since the syntax does not tell a module from a name.

    Raises:
      ValueError: an import is relative; this project writes them in full.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"Line {node.lineno}: relative import; write the module's full name.")
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def dependencies(path: str, root: pathlib.Path = ROOT) -> set[str]:
    """The project's files that `path` imports and, if it is a test, those that it names to run them."""
    source = (root / path).read_text()
    files = set(python_files(root))
    try:
        names = imported_names(source)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    stems = (name.replace(".", "/") for name in names)
    found = {file for stem in stems for file in (f"{stem}.py", f"{stem}/__init__.py")} & files
    if path.startswith("tests/"):
        constants = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
        found |= files.intersection(value for value in constants if isinstance(value, str))
    return found - {path}


def is_entry_point(path: str, root: pathlib.Path = ROOT) -> bool:
    """Whether the file may be run by itself."""
    return bool(re.search(r"^if __name__ == .__main__.:", (root / path).read_text(), re.MULTILINE))


def target_name(path: str) -> str:
    """`pipeline/data/record.py` -> `pipeline/data/record`."""
    return path.removesuffix(".py")


def render(root: pathlib.Path = ROOT) -> str:
    """The text of BUILD."""
    return "\n".join([HEADER, *(_target(path, root) for path in python_files(root))])


def _target(path: str, root: pathlib.Path) -> str:
    is_test = pathlib.PurePath(path).name.startswith("test_")
    deps = dependencies(path, root)
    attributes = {"name": target_name(path), "srcs": [path]}
    if is_test:
        rule = "py_test"
        attributes |= {"srcs": [path, TEST_RUNNER], "main": TEST_RUNNER, "args": [path], "data": [":sources"]}
    elif is_entry_point(path, root):
        rule = "py_binary"
        attributes["main"] = path
    else:
        rule = "py_library"
    if deps:
        attributes["deps"] = [f":{target_name(dep)}" for dep in sorted(deps)]
    lines = "".join(f"    {name} = {_literal(value)},\n" for name, value in attributes.items())
    return f"{rule}(\n{lines})\n"


def _literal(value: str | list[str]) -> str:
    """Starlark text, lists of several one a line as buildifier writes them."""
    if isinstance(value, str):
        return f'"{value}"'
    if len(value) == 1:
        return f'["{value[0]}"]'
    return "[\n" + "".join(f'        "{item}",\n' for item in value) + "    ]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if BUILD would change")
    build, text = ROOT / "BUILD", render()
    if not parser.parse_args().check:
        build.write_text(text)
    elif not build.exists() or build.read_text() != text:
        sys.exit("BUILD does not say what the files import: run `make build-file`.")


if __name__ == "__main__":
    main()
