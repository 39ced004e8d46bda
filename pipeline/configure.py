"""Configuration: what gin may bind, and checks that gin by itself does not make.

Gin accepts an unused macro, an unused binding and a value of the wrong type; here each is an
error, found before any work starts, that names file and line.
"""

import collections.abc
import dataclasses
import difflib
import hashlib
import inspect
import json
import os
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

import gin
from gin import config as gin_config
from gin import config_parser

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MACRO, _CONSTANT = "gin.macro", "gin.constant"


class ConfigurationError(ValueError):
    """The gin files or `--gin_param` bindings are wrong; the message says where."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """One binding as written; a macro has the selector 'gin.macro', its name as scope, and parameter 'value'."""

    scope: str
    selector: str
    parameter: str
    value: object
    place: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What the binding sets: a later one with the same key replaces it."""
        return self.scope, self.selector, self.parameter


def load(files: Sequence[str], params: Sequence[str], entry: str, tasks: Sequence[str]) -> None:
    """Parses gin `files` in order, then the bindings `params` over them, and checks everything.

    Args:
      files: paths; those they include are found from the working directory or the repository's root.
      params: bindings such as `Experiment.epochs=0.25` or `DATA_DIR="records"`.
      entry: name of the configurable that the program calls.
      tasks: configurables whose bindings are in use although this run may call another one of them.

    Raises:
      ConfigurationError: a file is missing, a name is unknown, a macro or binding is unused, a value is missing or
        of the wrong type.
    """
    gin.clear_config()
    gin.add_config_file_search_path(ROOT)
    try:
        statements = [statement for file in files for statement in _read_file(file)]
        statements += [s for i, param in enumerate(params) for s in _parse(param, f"--gin_param number {i + 1}")]
        gin.parse_config_files_and_bindings(list(files), list(params), finalize_config=False)
    except (ValueError, SyntaxError, AttributeError, OSError) as error:
        raise ConfigurationError(f"The configuration is wrong:\n  {error}{_suggest_names(str(error))}") from error
    if problems := list(_problems({s.key: s for s in statements}, entry, tasks)):
        raise ConfigurationError("The configuration is wrong:\n  " + "\n  ".join(problems))


def register(configurables: Mapping[str, collections.abc.Callable]) -> None:
    """Makes functions and classes known to gin under their names; what is known already stays."""
    for name, configurable in configurables.items():
        if gin_config._REGISTRY.get_match(name) is None:
            gin.external_configurable(configurable, name, module="pipeline")


def get(name: str) -> collections.abc.Callable:
    """The configurable `name`, which takes what is not passed to it from the configuration."""
    return gin.get_configurable(name)


def message(error: Exception) -> str:
    """The text of an error without the chain of configurables that gin appends to it."""
    return re.sub(r"\n\s*In call to configurable .*", "", str(error))


def text() -> str:
    """The parsed configuration as gin text."""
    return gin.config_str()


def resolved(ignore: Sequence[str] = ()) -> dict[str, str]:
    """`configurable.parameter` to value of every binding, macros filled in, but those of the configurables `ignore`."""
    return {
        f"{f'{scope}/' if scope else ''}{selector.rsplit('.', 1)[-1]}.{parameter}": repr(_fill_in(value))
        for (scope, selector), bindings in sorted(gin_config._CONFIG.items())
        if selector not in (_MACRO, _CONSTANT) and selector.rsplit(".", 1)[-1] not in ignore
        for parameter, value in sorted(bindings.items())
    }


def digest(bindings: Mapping[str, str]) -> str:
    """SHA-256 of `resolved` bindings."""
    return hashlib.sha256(json.dumps(bindings, sort_keys=True).encode()).hexdigest()


def _read_file(path: str) -> list[Statement]:
    for candidate in (path, os.path.join(ROOT, path)):
        if os.path.isfile(candidate):
            with open(candidate) as file:
                return _parse(file, path)
    raise OSError(f"Gin file {path!r} does not exist (looked from {os.getcwd()} and {ROOT}).")


def _parse(source, name: str) -> list[Statement]:
    """The statements of a gin file or text, those of included files in their place."""
    statements = []
    with gin_config._parse_scope():
        for statement in config_parser.ConfigParser(source, gin_config.ParserDelegate(skip_unknown=True)):
            if isinstance(statement, config_parser.IncludeStatement):
                statements += _read_file(statement.filename)
            elif isinstance(statement, config_parser.BindingStatement):
                scope, selector, parameter, value, location = statement
                if not parameter:
                    scope, selector, parameter = "/".join(filter(None, (scope, selector))), _MACRO, "value"
                elif configurable := gin_config._REGISTRY.get_match(selector):
                    selector = configurable.selector
                statements.append(Statement(scope, selector, parameter, value, f"{name}:{location.line_num}"))
    return statements


def _problems(statements: Mapping[tuple, Statement], entry: str, tasks: Sequence[str]) -> Iterator[str]:
    macros, configurables, called = _reachable([entry, *tasks])
    defined = {s.scope for s in statements.values() if s.selector == _MACRO}
    for s in statements.values():
        short = s.selector.rsplit(".", 1)[-1]
        if s.selector == _MACRO:
            if s.scope not in macros:
                yield f"{s.place}: macro {s.scope} is used nowhere{_suggest(s.scope, macros)}"
            elif _is_required(s.value):
                yield (
                    f"{s.place}: {s.scope} must be set, by a gin file that includes this one or with "
                    f"--gin_param='{s.scope}=VALUE'"
                )
        elif s.selector not in configurables:
            yield f"{s.place}: nothing uses {short}.{s.parameter}: no value in this configuration refers to @{short}"
        elif problem := _type_problem(s):
            yield f"{s.place}: {short}.{s.parameter} {problem}"
    for macro in sorted(macros - defined):
        yield (
            f"macro {macro} is used but set nowhere: set it in a gin file or with --gin_param='{macro}=VALUE'"
            + _suggest(macro, defined)
        )
    for selector in sorted(called):
        for parameter in inspect.signature(gin_config._REGISTRY[selector].wrapped).parameters.values():
            if parameter.default is parameter.empty and ("", selector, parameter.name) not in statements:
                name = f"{selector.rsplit('.', 1)[-1]}.{parameter.name}"
                yield f"{name} must be set: in a gin file or with --gin_param='{name}=VALUE'"


def _reachable(roots: Sequence[str]) -> tuple[set[str], set[str], set[str]]:
    """What the roots refer to, directly or not: names of macros, selectors of configurables, and of these the ones
    that gin itself calls, with nothing but its bindings."""
    pending = [gin_config._REGISTRY.get_match(root).selector for root in roots]
    macros, configurables = set(), set()
    called = set()
    while pending:
        selector = pending.pop()
        configurables.add(selector)
        values = [bindings for (_, name), bindings in gin_config._CONFIG.items() if name == selector]
        while values:
            for reference in gin_config.iterate_references(values.pop()):
                scope, target = reference.config_key
                if target == _MACRO and scope not in macros:
                    macros.add(scope)
                    values.append(gin_config._CONFIG.get((scope, _MACRO), {}))
                elif target not in (_MACRO, _CONSTANT):
                    called |= {target} if reference.evaluate else set()
                    pending += [] if target in configurables else [target]
    return macros, configurables, called


def _is_required(value: object) -> bool:
    return isinstance(value, gin_config.ConfigurableReference) and value.config_key == ("gin.REQUIRED", _CONSTANT)


def _fill_in(value: object) -> object:
    """`value` with its macros replaced by what they stand for; other references stay."""
    while isinstance(value, gin_config.ConfigurableReference) and value.config_key[1] == _MACRO:
        value = gin_config._CONFIG.get((value.config_key[0], _MACRO), {}).get("value")
    if isinstance(value, (list, tuple)):
        return type(value)(_fill_in(item) for item in value)
    return value


def _type_problem(statement: Statement) -> str | None:
    """What is wrong with the type of a binding's value, None where it fits its parameter's annotation."""
    function = gin_config._REGISTRY[statement.selector].wrapped
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    hint, value = hints.get(statement.parameter, typing.Any), _fill_in(statement.value)
    if _is_required(value) or _fits(value, hint):
        return None
    return f"must be {_describe(hint)}, found {value!r}"


def _fits(value: object, hint: object) -> bool:
    origin = typing.get_origin(hint)
    if hint is typing.Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if isinstance(value, gin_config.ConfigurableReference):
        target = value.configurable.wrapped
        if not value.evaluate:
            return hint is collections.abc.Callable or origin is collections.abc.Callable
        made = target if inspect.isclass(target) else typing.get_type_hints(target).get("return")
        return not (inspect.isclass(made) and inspect.isclass(hint)) or issubclass(made, hint)
    if origin in (list, tuple, collections.abc.Sequence):
        item = (*typing.get_args(hint), typing.Any)[0]
        return isinstance(value, (list, tuple)) and all(_fits(v, item) for v in value)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is None or hint is type(None):
        return value is None
    return isinstance(value, origin or hint) if inspect.isclass(origin or hint) else True


def _describe(hint: object) -> str:
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "").replace("collections.abc.", "")


def _suggest(name: str, known: collections.abc.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _suggest_names(message: str) -> str:
    """A hint for gin's own errors about names that it does not know."""
    if not (match := re.search(r"(?:No configurable matching|has no parameter named) '([^']*)'", message)):
        return ""
    names = [selector.rsplit(".", 1)[-1] for selector in gin_config._REGISTRY._selector_map]
    return _suggest(match.group(1), names)
