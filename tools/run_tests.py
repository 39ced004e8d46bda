"""Runs pytest on the files given: what `bazel test` starts for each test target."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
