"""One lock for every Python of pyproject.toml, which asks for what the lock holds."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools import build_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
SOURCE_ONLY = ("promise", "seqeval")  # packages without any wheel, of Python alone


def pins(path, python):
    """Normalized name -> version of what a requirements.txt gives to a Python on Linux; each name once."""
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    lines = [line for line in (ROOT / path).read_text().splitlines() if not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate(environment)]
    versions = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in chosen}
    assert len(versions) == len(chosen) and all(re.fullmatch(r"[\w.]+", version) for version in versions.values())
    return versions


def declared():
    """What pip installs with the package."""
    section = re.search(r"^dependencies = \[\n(.*?)^\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[1]
    return [Requirement(line) for line in re.findall(r'"(.*)"', section)]


def asked_for():
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements.in").read_text().splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_holds_what_is_asked_for(python):
    locked = pins("requirements.txt", python)
    wrong = [str(r) for r in [*asked_for(), *declared()] if locked[canonicalize_name(r.name)] not in r.specifier]
    assert not wrong


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_of_a_gpu_goes_with_it(python):
    gpu = pins("requirements-gpu.txt", python)
    assert gpu.pop("tensorflow") == pins("requirements.txt", python)["tensorflow"]
    assert gpu and all(name.startswith("nvidia-") for name in gpu)


def test_the_package_asks_for_what_its_modules_import():
    modules = (path for path in build_file.python_files() if path.startswith("pipeline/"))
    metadata = {"tensorflow-metadata"}  # see requirements.in
    assert {r.name for r in declared()} == metadata.union(*map(build_file.packages, modules))


def test_the_package_names_the_pythons_of_the_lock():
    supported = SpecifierSet(re.search(r'requires-python = "(.*)"', (ROOT / "pyproject.toml").read_text())[1])
    assert [f"3.{minor}" for minor in range(8, 16) if f"3.{minor}" in supported] == list(PYTHONS)


@pytest.mark.slow
@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_resolves_to_itself_and_has_wheels(python, tmp_path):
    """For each Python, here or not: the lock is complete, fits together, and needs no compiler."""
    files = ("requirements.txt", "requirements-gpu.txt")
    uv = pathlib.Path(sys.executable).with_name("uv")
    command = [uv, "pip", "compile", *files, "--python-version", python, "--python-platform", "linux", "--no-header"]
    wheels = ["--only-binary=:all:", *(f"--no-binary={name}" for name in SOURCE_ONLY)]
    output = tmp_path / "resolved.txt"
    subprocess.run([*command, *wheels, "--no-annotate", "--quiet", "-o", output], cwd=ROOT, check=True)
    expected = {name: version for file in files for name, version in pins(file, python).items()}
    assert pins(output, python) == expected


def makefile(tmp_path, *arguments):
    """`make` in a folder that has the Makefile and the lock alone."""
    for name in ("Makefile", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return subprocess.run(["make", *arguments], cwd=tmp_path, capture_output=True, text=True)


@pytest.mark.parametrize("version", ["3.9.2", "3.14.1", None])
def test_another_python_is_refused_with_what_to_name(tmp_path, version):
    python = tmp_path / "python"
    if version:  # a Python that says it is of this version
        fake = f"import sys; sys.version_info = ({', '.join(version.split('.'))}); sys.version = '{version} (main)'; "
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{fake}$2"\n')
        python.chmod(0o755)
    done = makefile(tmp_path, "setup", f"PYTHON={python}")
    assert done.returncode and not (tmp_path / ".venv").exists()
    found = f"Python {version}" if version else "no Python"
    assert re.search(rf"Found {found} as '{python}'.*3\.10 to 3\.13.*make setup PYTHON=", done.stderr)
