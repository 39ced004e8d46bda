"""Writes BUILD: a Bazel target for each module and test, whose deps are what the file imports.

    python tools/build_file.py

Imports of the project's own files become deps on their targets, other imports deps on the packages of
requirements.txt.
"""

import ast
import functools
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).absolute().parent.parent
FOLDERS = ("beam", "benchmarks", "examples", "pipeline", "tests", "tools")
TEST_RUNNER = "tools/run_tests.py"
# Loaded by each import from the package, and imports nothing itself.
PACKAGE = "pipeline/__init__.py"
# What pytest loads for every test.
TEST_SUPPORT = ("tests/conftest.py", TEST_RUNNER)
# Tests of the repository as a whole: they read its files and run its programs.
REPOSITORY_TESTS = (
    "test_build_file",
    "test_fidelity",
    "test_imports",
    "test_lock",
    "test_notebook",
    "test_public_accuracy",
    "test_readme",
    "test_recipes",
    "test_troubleshooting",
    "test_types",
)
# Modules whose distribution has another name.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "absl": "absl-py",
    "cv2": "opencv-python-headless",
    "gin": "gin-config",
    "google": "protobuf",
    "grpc": "grpcio",
    "official": "tf-models-official",
    "orbit": "tf-models-official",
    "tensorflow_serving": "tensorflow-serving-api",
}
# Packages that import others without requiring them.
UNDECLARED = {"tensorflow-datasets": {"importlib-resources"}}
# Packages outside requirements.txt: functions import them and say what to install, or skip a comparison.
OPTIONAL = {
    "boto3",
    "gcp_storage_emulator",
    "huggingface_hub",
    "img2dataset",
    "jax",
    "moto",
    "timm",
    "torch",
    "torchvision",
    "werkzeug",
}

HEADER = '''"""A target for each module and test; deps are their imports. Made by `make build-file`: do not edit."""

load("@pypi//:requirements.bzl", "requirement")
load("@rules_python//python:defs.bzl", "py_binary", "py_library", "py_test")

package(default_visibility = ["//visibility:public"])

filegroup(
    name = "data",
    srcs = glob(
        [
            "gin/**",
            "pipeline/**",
            "tests/**",
        ],
        exclude = [
            "**/*.py",
            "**/__pycache__/**",
        ],
    ) + glob([
        "beam/**/__init__.py",
        "pipeline/**/__init__.py",
        "tests/**/__init__.py",
    ]) + ["pyproject.toml"],
)

filegroup(
    name = "repository",
    srcs = glob(
        [
            "*",
            "beam/**",
            "benchmarks/**",
            "docs/**",
            "examples/**",
            "gin/**",
            "pipeline/**",
            "tests/**",
            "tools/**",
        ],
        exclude = [
            ".*",
            "**/__pycache__/**",
        ],
    ),
)
'''


@functools.cache  # it is asked for with each file
def python_files(root: pathlib.Path = ROOT) -> tuple[str, ...]:
    """The project's Python files that hold code, as sorted paths below `root` with '/' between names."""
    paths = (path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return tuple(sorted(path.relative_to(root).as_posix() for path in paths if path.read_text().strip()))


def imported_names(source: str) -> set[str]:
    """Every dotted name that an import statement anywhere in `source` may load.

    `from a.b import c` counts as `a.b` and `a.b.c`, since the syntax does not tell a module from a name.

    Raises:
      ValueError: an import is relative; this project writes them in full.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError(f"Line {node.lineno}: relative import; write the module's full name.")
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def dependencies(path: str, root: pathlib.Path = ROOT) -> set[str]:
    """The project's files that `path` imports and, if it is a test, those that it names to run them."""
    files = set(python_files(root))
    stems = (name.replace(".", "/") for name in _names(path, root))
    used = {file for stem in stems for file in (f"{stem}.py", f"{stem}/__init__.py")} & files
    if path.startswith("tests/"):
        used |= files & _strings(path, root)
    return used - {path, PACKAGE}


def packages(path: str, root: pathlib.Path = ROOT) -> set[str]:
    """The distributions of requirements.txt that `path` imports, by their names as PEP 503 compares them.

    Raises:
      ValueError: an import is of a package that requirements.txt does not name.
    """
    modules = {name.split(".")[0] for name in _names(path, root)} - sys.stdlib_module_names - OPTIONAL - set(FOLDERS)
    distributions = {DISTRIBUTIONS.get(module, module).replace("_", "-").lower() for module in modules}
    if unknown := sorted(distributions - _pinned(root)):
        raise ValueError(
            f"{path} imports {', '.join(unknown)}, not in requirements.txt: add it to requirements.in and run "
            f"`make lock`, or name its distribution in DISTRIBUTIONS of tools/build_file.py."
        )
    return distributions.union(*(UNDECLARED.get(name, set()) for name in distributions))


def is_entry_point(path: str, root: pathlib.Path = ROOT) -> bool:
    """Whether the file may be run by itself."""
    return bool(re.search(r"^if __name__ == .__main__.:", (root / path).read_text(), re.MULTILINE))


def is_slow(path: str, root: pathlib.Path = ROOT) -> bool:
    """Whether all tests of the file are slow ones."""
    functions = [node for node in ast.parse((root / path).read_text()).body if isinstance(node, ast.FunctionDef)]
    tests = [node for node in functions if node.name.startswith("test_")]
    slow = [test for test in tests if "pytest.mark.slow" in map(ast.unparse, test.decorator_list)]
    return bool(tests) and slow == tests


def target_name(path: str) -> str:
    """`pipeline/data/record.py` -> `pipeline/data/record`."""
    return path.removesuffix(".py")


def render(root: pathlib.Path = ROOT) -> str:
    """The text of BUILD."""
    return "\n".join([HEADER, *(_target(path, root) for path in python_files(root))])


def _names(path: str, root: pathlib.Path) -> set[str]:
    try:
        return imported_names((root / path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _strings(path: str, root: pathlib.Path) -> set[str]:
    constants = (
        node.value for node in ast.walk(ast.parse((root / path).read_text())) if isinstance(node, ast.Constant)
    )
    return {value for value in constants if isinstance(value, str)}


def _pinned(root: pathlib.Path) -> set[str]:
    names = re.findall(r"^([\w.-]+)==", (root / "requirements.txt").read_text(), re.MULTILINE)
    return {re.sub("[._-]+", "-", name).lower() for name in names}


def _target(path: str, root: pathlib.Path) -> str:
    deps, distributions = dependencies(path, root), packages(path, root)
    attributes: dict[str, str | list[str]] = {"name": target_name(path), "srcs": [path]}
    stem = pathlib.PurePath(path).stem
    if stem.startswith("test_"):
        rule = "py_test"
        whole = stem in REPOSITORY_TESTS
        files = python_files(root)
        deps |= {file for file in files if file in TEST_SUPPORT or (whole and not file.startswith("tests/"))}
        attributes |= {"srcs": [path, TEST_RUNNER], "main": TEST_RUNNER, "args": [path]}
        named = _strings(path, root) & {file.name for file in root.iterdir() if file.is_file()}
        attributes["data"] = [":repository"] if whole else [":data", *sorted(named)]
        if is_slow(path, root):
            attributes["tags"] = ["slow"]
    elif is_entry_point(path, root):
        rule = "py_binary"
        attributes["main"] = path
    else:
        rule = "py_library"
    literals = {name: _literal(value) for name, value in attributes.items()}
    if deps or distributions:
        labels = (f'":{target_name(dep)}"' for dep in sorted(deps))
        literals["deps"] = _list([*labels, *(f'requirement("{name}")' for name in sorted(distributions))])
    lines = "".join(f"    {name} = {literal},\n" for name, literal in literals.items())
    return f"{rule}(\n{lines})\n"


def _literal(value: str | list[str]) -> str:
    return f'"{value}"' if isinstance(value, str) else _list([f'"{item}"' for item in value])


def _list(items: list[str]) -> str:
    """Starlark text of a list, several items one per line as buildifier writes them."""
    if len(items) == 1:
        return f"[{items[0]}]"
    return "[\n" + "".join(f"        {item},\n" for item in items) + "    ]"


def main() -> None:
    (ROOT / "BUILD").write_text(render())


if __name__ == "__main__":
    main()
