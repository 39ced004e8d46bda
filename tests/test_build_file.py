"""BUILD states what the files import, and requirements.in names the packages that they import."""

import re

import pytest

from tools import build_file

# In requirements.in for another reason than an import.
COMMANDS = {"jinja2", "mypy", "pytest-xdist", "ruff", "tensorflow-metadata", "uv"}


@pytest.fixture
def tree(tmp_path):
    """Writes a small project: takes path to content, returns its root."""

    def write(files):
        files = {"requirements.txt": "numpy==2.4.6\npillow==12.3.0\npytest==9.2.0\n", **files}
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return tmp_path

    return write


def targets(text):
    """Name -> text of each target that renders a Python file."""
    parts = re.split(r"\n(?=py_\w+\()", text)[1:]
    return {re.search(r'name = "(.*)"', part)[1]: part for part in parts}


def deps(target):
    return re.findall(r'":((?:pipeline|tests)/\w+)"', target.split("deps = ")[-1]) if "deps = " in target else []


def test_build_is_what_the_files_import():
    assert (build_file.ROOT / "BUILD").read_text() == build_file.render(), "Run `make build-file`."


def test_deps_by_every_way_to_import(tree):
    root = tree(
        {
            "pipeline/__init__.py": "",
            "pipeline/a.py": "def f():\n    from pipeline.b import g\n    return g\n",
            "pipeline/b.py": "import os\nimport pipeline.c\n",
            "pipeline/c.py": "x = 1\n",
            "pipeline/main.py": "from pipeline import a\nif __name__ == '__main__':\n    a.f()\n",
            "tests/conftest.py": "import pytest\n",
            "tests/test_a.py": "from pipeline import a, b\nprogram = 'pipeline/main.py'\n",
        }
    )
    made = targets(build_file.render(root))
    assert {name: target.split("(")[0] for name, target in made.items()} == {
        "pipeline/a": "py_library",
        "pipeline/b": "py_library",
        "pipeline/c": "py_library",
        "pipeline/main": "py_binary",
        "tests/conftest": "py_library",
        "tests/test_a": "py_test",
    }
    assert {name: deps(target) for name, target in made.items()} == {
        "pipeline/a": ["pipeline/b"],
        "pipeline/b": ["pipeline/c"],
        "pipeline/c": [],
        "pipeline/main": ["pipeline/a"],
        "tests/conftest": [],
        "tests/test_a": ["pipeline/a", "pipeline/b", "pipeline/main", "tests/conftest"],
    }


def test_a_file_that_a_test_names_is_its_data(tree):
    root = tree({"tests/test_a.py": "text = open('requirements.txt').read()\n"})
    (target,) = targets(build_file.render(root)).values()
    assert '":data",\n        "requirements.txt",\n' in target


def test_packages_by_distribution(tree):
    root = tree(
        {"pipeline/a.py": "import os\nimport numpy.linalg\nfrom PIL import Image\n\ndef f():\n    import jax\n"}
    )
    assert build_file.packages("pipeline/a.py", root) == {"numpy", "pillow"}
    (target,) = targets(build_file.render(root)).values()
    assert re.findall(r'requirement\("(.*)"\)', target) == ["numpy", "pillow"]


def test_what_a_package_imports_without_requiring_it_is_added(tree):
    root = tree({"requirements.txt": "tensorflow-datasets==1\n", "beam/a.py": "import tensorflow_datasets as tfds\n"})
    assert build_file.packages("beam/a.py", root) == {"tensorflow-datasets", "importlib-resources"}


def test_a_package_outside_requirements_is_refused(tree):
    root = tree({"pipeline/a.py": "import requests\n"})
    with pytest.raises(ValueError, match=r"pipeline/a\.py imports requests.*requirements\.in"):
        build_file.render(root)


@pytest.mark.parametrize(
    ("tests", "slow"),
    [
        ("@pytest.mark.slow\ndef test_a(): ...\n", True),
        ("@pytest.mark.slow\ndef test_a(): ...\ndef test_b(): ...\n", False),
        ("def helper(): ...\n", False),
    ],
)
def test_a_target_is_slow_if_all_its_tests_are(tree, tests, slow):
    root = tree({"tests/test_a.py": f"import pytest\n\n{tests}"})
    (target,) = targets(build_file.render(root)).values()
    assert ('tags = ["slow"]' in target) == slow


def test_relative_imports_are_refused():
    with pytest.raises(ValueError, match="Line 1: relative import"):
        build_file.imported_names("from . import record\n")


def test_requirements_are_what_the_files_import():
    """Neither a package that nothing uses nor one that comes only because another package requires it."""
    text = (build_file.ROOT / "requirements.in").read_text()
    named = set(re.findall(r"^([\w-]+)", text, re.MULTILINE))
    assert named == COMMANDS.union(*map(build_file.packages, build_file.python_files()))
