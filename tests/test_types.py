"""Every public function and method of the library names the types of its parameters and of its result."""

import ast

import pytest

from tools import build_file

LIBRARY = [path for path in build_file.python_files() if path.startswith(("pipeline/", "beam/"))]
WITHOUT_RESULT = ("__init__", "__post_init__")


def missing_annotations(source: str) -> list[str]:
    """`line: function(parameter)` for each parameter, and `line: function` for each result, that has no annotation."""
    module = ast.parse(source)
    classes = [node for node in module.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    functions = [(node, 0) for node in module.body] + [(node, 1) for owner in classes for node in owner.body]
    missing = []
    for function, is_method in functions:
        if not isinstance(function, ast.FunctionDef) or (function.name[0] == "_" and function.name[-1] != "_"):
            continue
        bound = is_method and "staticmethod" not in map(ast.unparse, function.decorator_list)
        signature = function.args
        parameters = [*signature.posonlyargs, *signature.args][bound:] + signature.kwonlyargs
        parameters += filter(None, (signature.vararg, signature.kwarg))
        name = f"{function.lineno}: {function.name}"
        missing += [f"{name}({parameter.arg})" for parameter in parameters if parameter.annotation is None]
        if function.returns is None and function.name not in WITHOUT_RESULT:
            missing.append(name)
    return missing


@pytest.mark.parametrize("path", LIBRARY)
def test_public_functions_are_annotated(path):
    missing = missing_annotations((build_file.ROOT / path).read_text())
    assert not missing, f"{path} has no annotation for {', '.join(missing)}."


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f(a: int, *b: int, c: int = 0, **d: int) -> int: ...", []),
        ("def f(a, *b, c=0, **d): ...", ["1: f(a)", "1: f(c)", "1: f(b)", "1: f(d)", "1: f"]),
        ("def _f(a): ...", []),
        ("class A:\n def f(self, a): ...", ["2: f(a)", "2: f"]),
        ("class A:\n @staticmethod\n def f(a) -> int: ...", ["3: f(a)"]),
        ("class A:\n def __init__(self, a): ...", ["2: __init__(a)"]),
        ("class A:\n def __len__(self): ...", ["2: __len__"]),
        ("class A:\n def _f(self, a): ...", []),
        ("class _A:\n def f(self, a): ...", []),
        ("def f() -> int:\n def g(a): ...", []),
    ],
)
def test_what_counts_as_missing(source, missing):
    assert missing_annotations(source) == missing
