"""Who may import whom: the arrows of docs/design.md."""

import ast
import re

import pytest

from tools import build_file

# Folder or file -> the parts of the project that it may import, besides itself. Entry points in
# pipeline/ and everything in tests/, tools/, benchmarks/ and examples/ may import what they like.
ARROWS = {
    "pipeline/errors.py": (),
    "pipeline/files.py": (),
    "pipeline/contact_sheet.py": ("pipeline/data/rgb.py",),
    "pipeline/objective.py": (),
    "pipeline/data/": ("pipeline/files.py", "pipeline/objective.py"),
    "pipeline/model/": ("pipeline/files.py",),
    "pipeline/sharding/": ("pipeline/model/",),
    "pipeline/evaluation/": (
        "pipeline/data/",
        "pipeline/objective.py",
        "pipeline/contact_sheet.py",
        "pipeline/figure_style.py",
        "pipeline/files.py",
        "pipeline/report.py",
    ),
    "pipeline/train/": (
        "pipeline/data/",
        "pipeline/evaluation/",
        "pipeline/model/",
        "pipeline/sharding/",
        "pipeline/errors.py",
        "pipeline/files.py",
        "pipeline/objective.py",
        "pipeline/report.py",
    ),
    "pipeline/serving/": (
        "pipeline/model/",
        "pipeline/data/augment.py",
        "pipeline/data/record.py",
        "pipeline/data/rgb.py",
        "pipeline/errors.py",
        "pipeline/files.py",
        "pipeline/objective.py",
    ),
    "pipeline/study/": (
        "pipeline/evaluation/page.py",
        "pipeline/model/cost.py",
        "pipeline/model/speeds.py",
        "pipeline/model/variants.py",
        "pipeline/figure_style.py",
        "pipeline/files.py",
    ),
    "pipeline/tpu/": (
        "pipeline/train/",
        "pipeline/model/",
        "pipeline/sharding/",
        "pipeline/data/",
        "pipeline/errors.py",
        "pipeline/files.py",
    ),
    "pipeline/": ("pipeline/",),
    "beam/": (
        "pipeline/contact_sheet.py",
        "pipeline/errors.py",
        "pipeline/files.py",
        "pipeline/data/record.py",
        "pipeline/data/shard.py",
        "pipeline/data/manifest.py",
        "pipeline/data/rgb.py",
        "pipeline/data/statistics.py",
    ),
    # Batch prediction takes of the rest of beam/ what knows nothing of builds.
    "beam/prediction/": (
        "beam/errors.py",
        "beam/files.py",
        "beam/flags.py",
        "beam/progress.py",
        "beam/runners.py",
        "pipeline/data/",
        "pipeline/evaluation/",
        "pipeline/serving/",
        "pipeline/errors.py",
        "pipeline/files.py",
        "pipeline/objective.py",
    ),
}
LIBRARY = [path for path in build_file.python_files() if path.startswith(("pipeline/", "beam/"))]
# (who imports, who is imported): the arrows that must be refused if somebody draws them.
FORBIDDEN = [
    ("pipeline/data/augment.py", "pipeline/model/nfnet.py"),
    ("pipeline/model/nfnet.py", "pipeline/data/record.py"),
    ("pipeline/serving/version_folder.py", "pipeline/data/reader.py"),
    ("pipeline/serving/version_folder.py", "pipeline/train/checkpoint.py"),
    ("pipeline/evaluation/metrics.py", "pipeline/train/evaluator.py"),
    ("pipeline/evaluation/page.py", "pipeline/model/nfnet.py"),
    ("pipeline/study/law.py", "pipeline/train/trainer.py"),
    ("pipeline/main.py", "beam/images.py"),
    ("pipeline/train/step.py", "pipeline/tpu/program.py"),
    ("pipeline/study/run_files.py", "pipeline/tpu/chips.py"),
    ("beam/images.py", "pipeline/serving/version_folder.py"),
    ("beam/prediction/inference.py", "beam/images.py"),
    ("beam/prediction/evaluation.py", "pipeline/train/evaluator.py"),
    ("pipeline/evaluation/collector.py", "pipeline/serving/client.py"),
]


def allowed(importer: str, imported: str) -> bool:
    """Whether the arrow may be drawn: the longest entry of ARROWS that fits the importer decides."""
    origin = max((part for part in ARROWS if importer.startswith(part)), key=len)
    return imported.startswith((origin, *ARROWS[origin]))


@pytest.mark.parametrize("arrow", FORBIDDEN, ids=" to ".join)
def test_the_table_refuses(arrow):
    assert not allowed(*arrow)


@pytest.mark.parametrize("path", LIBRARY)
def test_arrows(path):
    wrong = [imported for imported in sorted(build_file.dependencies(path)) if not allowed(path, imported)]
    assert not wrong, f"{path} may not import {', '.join(wrong)}: see ARROWS in this file."


@pytest.mark.parametrize("path", LIBRARY)
def test_packages(path):
    names = build_file.imported_names((build_file.ROOT / path).read_text())
    packages = {name.split(".")[0] for name in names}
    if path.startswith("pipeline/"):
        assert "apache_beam" not in packages, f"{path}: only beam/ imports Apache Beam."
    if path != "pipeline/tpu/compiler.py":
        assert not packages & {"jax", "jaxlib"}, f"{path}: only pipeline/tpu/compiler.py imports JAX."
    if path != "pipeline/configure.py" and not build_file.is_entry_point(path):
        assert "gin" not in packages, f"{path}: only entry points and pipeline/configure.py import gin."


@pytest.mark.parametrize("path", build_file.python_files())
def test_keras_is_tf_keras(path):
    source = (build_file.ROOT / path).read_text()
    names = build_file.imported_names(source)
    assert not any(re.match(r"(tensorflow\.)?keras(\.|$)", name) for name in names), f"{path}: import tf_keras."
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and node.attr == "keras":
            assert ast.unparse(node) != "tf.keras", f"{path}:{node.lineno}: write tf_keras."


def test_gin_folder_holds_no_python():
    """A package of that name would hide the gin library."""
    assert not list((build_file.ROOT / "gin").rglob("*.py"))
