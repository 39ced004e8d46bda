"""Configuration: what gin may bind, and checks that gin by itself does not make.

Gin accepts an unused macro, an unused binding and a value of the wrong type; here each is an
error, found before any work starts, that names file and line.
"""

import ast
import collections.abc
import dataclasses
import difflib
import hashlib
import inspect
import json
import os
import re
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping, Sequence

import gin
from gin import config as gin_config
from gin import config_parser
from pipeline.files import is_remote, opened

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_MACRO, _CONSTANT = "gin.macro", "gin.constant"
_REQUIRED, _AUTO = "gin.REQUIRED", "AUTO"  # constants: of gin, and of ours
gin.constant(_AUTO, _AUTO)
_Key = tuple[str, str, str]


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
    def key(self) -> _Key:
        """What the binding sets: a later one with the same key replaces it."""
        return self.scope, self.selector, self.parameter


# Gin's state belongs to the process, and so does this: the names registered and the bindings in force.
_registered: set[str] = set()
_bindings: dict[_Key, Statement] = {}


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
    _bindings.clear()
    try:
        for file in files:
            _read_file(file)
        for i, param in enumerate(params):
            _parse_param(param, f"--gin_param number {i + 1}")
    except (ValueError, SyntaxError, AttributeError, OSError) as error:
        raise ConfigurationError(
            f"The configuration is wrong:\n  {str(error).rstrip('.')}{_suggest_names(str(error))}"
        ) from error
    if problems := list(_problems(entry, tasks)):
        raise ConfigurationError("The configuration is wrong:\n  " + "\n  ".join(problems))


def register(configurables: Mapping[str, collections.abc.Callable]) -> None:
    """Registers functions and classes with gin under their names; names that are registered already stay."""
    for name in configurables.keys() - _registered:
        gin.external_configurable(configurables[name], name, module="pipeline")
        _registered.add(name)


def get(name: str) -> collections.abc.Callable:
    """The configurable `name`, which takes what is not passed to it from the configuration."""
    return gin.get_configurable(name)


def message(error: Exception) -> str:
    """The text of an error without the chain of configurables that gin appends to it."""
    return re.sub(r"\n\s*In call to configurable .*", "", str(error))


def automatic() -> list[str]:
    """The macros set to `%AUTO`: what follows from the data, and is to be bound before anything is called."""
    return [s.scope for s in _bindings.values() if s.selector == _MACRO and _is_constant(s.value, _AUTO)]


def macro(name: str) -> typing.Any:
    """The value of a macro, None where it is not set."""
    return _fill_in(_macro_value(name))


def text() -> str:
    """The parsed configuration as gin text."""
    return gin.config_str()


def resolved(ignore: Sequence[str] = ()) -> dict[str, str]:
    """`configurable.parameter` to value of every binding, macros filled in, but those of the configurables `ignore`."""
    return {
        f"{f'{scope}/' if scope else ''}{_short(selector)}.{parameter}": repr(_fill_in(statement.value))
        for (scope, selector, parameter), statement in sorted(_bindings.items(), key=lambda item: item[0])
        if selector not in (_MACRO, _CONSTANT) and _short(selector) not in ignore
    }


def digest(bindings: Mapping[str, str]) -> str:
    """SHA-256 of `resolved` bindings."""
    return hashlib.sha256(json.dumps(bindings, sort_keys=True).encode()).hexdigest()


def _configurable(name: str) -> gin_config.Configurable:
    """What gin knows under a name or selector. A reference is the public way to it that does not call it."""
    return gin_config.ConfigurableReference(name, evaluate=False).configurable


def _short(selector: str) -> str:
    return selector.rsplit(".", 1)[-1]


def _read_file(path: str) -> None:
    for candidate in (path, os.path.join(ROOT, path)):
        if is_remote(path) or os.path.isfile(candidate):
            try:
                with opened(candidate, "r") as file:
                    text = file.read()
            except Exception as error:  # TensorFlow has types of its own for remote files
                raise OSError(f"Gin file {path!r} cannot be read: {error}") from error
            return _parse(text, path)
    raise OSError(f"Gin file {path!r} does not exist (looked from {os.getcwd()} and {ROOT}).")


def _parse(source: str, name: str) -> None:
    """Binds what a gin file or text says, included files in their place."""
    try:
        statements = list(config_parser.ConfigParser(source, gin_config.ParserDelegate()))
    except (SyntaxError, ValueError, tokenize.TokenError) as error:  # the last from Python 3.12 on
        raise ValueError(f"{name}: {error}") from error
    for statement in statements:
        place = f"{name}:{statement.location.line_num}"
        if isinstance(statement, config_parser.ImportStatement):
            raise ValueError(f"{place}: gin files of this project cannot import Python modules.")
        if isinstance(statement, config_parser.IncludeStatement):
            _read_file(statement.filename)
        elif isinstance(statement, config_parser.BindingStatement):
            _bind(statement, place)


def _parse_param(param: str, name: str) -> None:
    try:
        _parse(param, name)
    except ValueError as error:
        target, _, value = (part.strip() for part in param.partition("="))
        if not value or value[0] in "\"'@%" or _is_literal(value):
            raise
        raise ValueError(
            f"{name}: {value} is neither a number nor a name of gin's. Text needs quotes, and so do they from the "
            f"shell: --gin_param='{target}=\"{value}\"'"
        ) from error


def _is_literal(value: str) -> bool:
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return False
    return True


def _bind(statement: config_parser.BindingStatement, place: str) -> None:
    scope, selector, parameter, value, _ = statement
    if not parameter:
        scope, selector, parameter = "/".join(filter(None, (scope, selector))), _MACRO, "value"
    try:
        gin.bind_parameter((scope, selector, parameter), value)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    bound = Statement(scope, _configurable(selector).selector, parameter, value, place)
    _bindings[bound.key] = bound


def _problems(entry: str, tasks: Sequence[str]) -> Iterator[str]:
    macros, configurables, called = _reachable([entry, *tasks])
    references = [r.config_key for s in _bindings.values() for r in gin_config.iterate_references(s.value)]
    scopes = {scope for scope, target in references if target not in (_MACRO, _CONSTANT)} - {""}
    defined = {s.scope for s in _bindings.values() if s.selector == _MACRO}
    for s in _bindings.values():
        short = _short(s.selector)
        if s.selector == _MACRO:
            if s.scope not in macros:
                yield f"{s.place}: macro {s.scope} is used nowhere{_suggest(s.scope, macros)}"
            elif _is_constant(s.value, _REQUIRED):
                yield (
                    f"{s.place}: {s.scope} must be set, by a gin file that includes this one or with "
                    f"--gin_param='{s.scope}=VALUE'"
                )
        elif s.selector not in configurables:
            yield f"{s.place}: nothing uses {short}.{s.parameter}: no value in this configuration refers to @{short}"
        elif s.scope and s.scope not in scopes:
            yield f"{s.place}: nothing uses {s.scope}/{short}.{s.parameter}{_suggest(s.scope, scopes)}"
        elif problem := _type_problem(s):
            yield f"{s.place}: {f'{s.scope}/' if s.scope else ''}{short}.{s.parameter} {problem}"
    for macro in sorted(macros - defined):
        yield (
            f"macro {macro} is used but set nowhere: set it in a gin file or with --gin_param='{macro}=VALUE'"
            + _suggest(macro, defined)
        )
    for scope, selector in sorted(called):
        for parameter in inspect.signature(_configurable(selector).wrapped).parameters.values():
            bound = any((each, selector, parameter.name) in _bindings for each in ("", scope))
            if parameter.default is parameter.empty and not bound:
                name = f"{f'{scope}/' if scope else ''}{_short(selector)}.{parameter.name}"
                yield f"{name} must be set: in a gin file or with --gin_param='{name}=VALUE'"


def _reachable(roots: Sequence[str]) -> tuple[set[str], set[str], set[tuple[str, str]]]:
    """What the roots refer to, directly or not: names of macros, selectors of configurables, and (scope, selector) of
    those that gin itself calls, with nothing but its bindings."""
    pending = [_configurable(root).selector for root in roots]
    macros: set[str] = set()
    configurables: set[str] = set()
    called: set[tuple[str, str]] = set()
    while pending:
        selector = pending.pop()
        configurables.add(selector)
        values = [statement.value for statement in _bindings.values() if statement.selector == selector]
        while values:
            for reference in gin_config.iterate_references(values.pop()):
                scope, target = reference.config_key
                if target == _MACRO and scope not in macros:
                    macros.add(scope)
                    values.append(_macro_value(scope))
                elif target not in (_MACRO, _CONSTANT):
                    called |= {(scope, target)} if reference.evaluate else set()
                    pending += [] if target in configurables else [target]
    return macros, configurables, called


def _macro_value(name: str) -> object:
    statement = _bindings.get((name, _MACRO, "value"))
    return statement.value if statement else None


def _is_constant(value: object, name: str) -> bool:
    return isinstance(value, gin_config.ConfigurableReference) and value.config_key == (name, _CONSTANT)


def _fill_in(value: object) -> object:
    """`value` with its macros replaced by what they stand for; other references stay."""
    while isinstance(value, gin_config.ConfigurableReference) and value.config_key[1] == _MACRO:
        value = _macro_value(value.config_key[0])
    if isinstance(value, (list, tuple)):
        return type(value)(_fill_in(item) for item in value)
    return value


def _type_problem(statement: Statement) -> str | None:
    """What is wrong with the type of a binding's value, None where it fits its parameter's annotation."""
    function = _configurable(statement.selector).wrapped
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    hint, value = hints.get(statement.parameter, typing.Any), _fill_in(statement.value)
    if _is_constant(value, _REQUIRED) or _is_constant(value, _AUTO) or _fits(value, hint):
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
    kind = origin or hint
    return not inspect.isclass(kind) or isinstance(value, kind)


def _describe(hint: object) -> str:
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "").replace("collections.abc.", "")


def _suggest(name: str, known: collections.abc.Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _suggest_names(message: str) -> str:
    """A hint for gin's own error about a name that it does not know."""
    match = re.search(r"No configurable matching '([^']*)'", message)
    return _suggest(match.group(1), _registered) if match else ""
