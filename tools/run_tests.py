"""Runs pytest on the files given: what `bazel test` starts for each test target.

Bazel lays out the files of a target as links into the repository. The tests run on a copy, so that a program or test
that follows a link finds no file that its target does not declare.
"""

import os
import pathlib
import shutil
import sys

import pytest


def main() -> int:
    declared = pathlib.Path.cwd()
    copy = pathlib.Path(os.environ["TEST_TMPDIR"]) / declared.name
    shutil.copytree(declared, copy, ignore=shutil.ignore_patterns("external"))  # where Bazel links packages again
    packages = [path for path in sys.path[1:] if pathlib.Path(path).is_dir() and pathlib.Path(path) != declared]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(copy), *packages])  # for programs that the tests start
    sys.path[:] = [str(copy), *packages]
    os.chdir(copy)
    return pytest.main(["-p", "no:cacheprovider", f"--basetemp={copy.parent / 'tests'}", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
