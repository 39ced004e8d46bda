"""Writes a Bazel repository of the installed packages that requirements.txt pins, one target for each distribution.

    python tools/bazel/distributions.py requirements.txt OUTPUT_DIR

This stands in for `pip.parse` of rules_python where Bazel has no network: a target holds links to the files of one
distribution, and its deps are the distribution's own requirements. As with `pip.parse`, a lock without extras gives
none: `etils[epath]` is `etils`.
"""

import collections
import importlib.metadata
import pathlib
import re
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS_BZL = '''"""The packages of requirements.txt that the Python environment holds."""

_INSTALLED = {installed}
_MISSING = {missing}

def requirement(name):
    """The target of the distribution `name`."""
    if name in _MISSING:
        fail("%s of requirements.txt is not installed: run `make setup`." % _MISSING[name])
    if name not in _INSTALLED:
        fail("%s is not in requirements.txt." % name)
    return "@pypi//:" + name
'''


def pinned(lock: str) -> dict[str, str]:
    """Name as PEP 503 compares it -> version of every line of a requirements.txt that is for this Python."""
    lines = (Requirement(line) for line in re.findall(r"^[\w.-]+==.+", lock, re.MULTILINE))
    lines = (line for line in lines if line.marker is None or line.marker.evaluate())
    return {canonicalize_name(line.name): str(line.specifier).removeprefix("==") for line in lines}


def installed(pins: dict[str, str]) -> dict[str, importlib.metadata.Distribution]:
    """The distributions of `pins` that this Python environment holds with the version pinned, by normalized name."""
    present = {canonicalize_name(each.name): each for each in importlib.metadata.distributions()}
    return {name: each for name, each in present.items() if name in pins and each.version == pins[name]}


def deps(distribution: importlib.metadata.Distribution, names: collections.abc.Container[str]) -> list[str]:
    """The distributions among `names` that this one requires on this machine, extras left out."""
    requirements = [Requirement(text) for text in distribution.requires or ()]
    needed = {canonicalize_name(r.name) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})}
    return sorted(name for name in needed if name in names)


def owned_paths(files: dict[str, list[pathlib.PurePath]]) -> dict[str, set[pathlib.PurePath]]:
    """By distribution, the fewest files and folders of site-packages that hold its files and no one else's."""
    owners = collections.defaultdict(set)
    for name, paths in files.items():
        for path in paths:
            for part in (path, *path.parents):
                owners[part].add(name)
    fewest = collections.defaultdict(set)
    for name, paths in files.items():
        for path in paths:
            parts = [*reversed(path.parents), path]
            fewest[name].add(next((part for part in parts if len(owners[part]) == 1), path))
    return fewest


def write_repository(lock: pathlib.Path, output: pathlib.Path) -> None:
    """Writes links to the installed files, BUILD and requirements.bzl below the folder `output`."""
    pins = pinned(lock.read_text())
    distributions = installed(pins)
    files = {
        name: [pathlib.PurePath(f) for f in distribution.files or () if f.parts[0] not in ("..", "__pycache__")]
        for name, distribution in distributions.items()
    }
    targets = ['package(default_visibility = ["//visibility:public"])\n']
    for name, paths in owned_paths(files).items():
        folder = pathlib.PurePath("site-packages") / name
        for path in paths:
            link = output / folder / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(pathlib.Path(str(distributions[name].locate_file(path))))
        data = sorted(str(folder / path) for path in paths)
        needed = [f":{dep}" for dep in deps(distributions[name], distributions)]
        targets.append(f'py_library(name = "{name}", data = {data}, imports = ["{folder}"], deps = {needed})\n')
    (output / "BUILD").write_text("\n".join(targets))
    missing = {name: f"{name}=={pin}" for name, pin in pins.items() if name not in distributions}
    text = REQUIREMENTS_BZL.format(installed=sorted(distributions), missing=missing)
    (output / "requirements.bzl").write_text(text)


if __name__ == "__main__":
    write_repository(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
