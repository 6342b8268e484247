"""The options of a backend: the annotated, keyword-only signature of its factory is their schema.

A factory is the backend's class, or a function that returns a backend. Text from a URL is converted by the annotation;
a value from a mapping or a keyword is checked against it. The annotations that count are `int`, `float`, `bool`, `str`,
`None`, `Literal`, callables, and unions of these. The factory itself must check a value for any other annotation.
"""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, get_args, get_origin

from stube._errors import BackendLoadError, ConfigError
from stube._secrets import redacted
from stube._spec import Spec, show

__all__ = ["Option", "arguments_for", "nearest", "schema_of"]

_REQUIRED: Final = object()
_NO: Final = object()
_WORDS: Final = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}
_NAME_A_FACTORY: Final = "Name a class or a function that is written in Python and takes (*, option: type = default)."
_ARTICLES: Final = {int: "an int", float: "a float", bool: "a bool", str: "a str", NoneType: "None"}


class Option:
    """One keyword-only parameter of a factory."""

    __slots__ = ("default", "name", "parts")

    def __init__(self, name: str, annotation: object, default: object) -> None:
        self.name = name
        # The members of the union, the narrowest first, so that "1" for `int | str` is an int.
        self.parts = sorted(_parts(annotation), key=_breadth)
        self.default = default

    @property
    def required(self) -> bool:
        """True when it has no default."""
        return self.default is _REQUIRED

    @property
    def textual(self) -> bool:
        """True when a text other than "none" can be converted to a value of it."""
        return any(part is not NoneType and _breadth(part) < _OPAQUE for part in self.parts)

    def convert(self, text: str) -> object:
        """Convert the text of a URL to a value; `_NO` when it cannot be converted."""
        return next((value for part in self.parts if (value := _converted(part, text)) is not _NO), _NO)

    def accepts(self, value: object) -> bool:
        """Tell whether the annotation allows a value."""
        return any(_accepts(part, value) for part in self.parts)

    def expected(self, *, in_url: bool) -> str:
        """Describe the allowed values for an error: `an int or None`, or in a URL `an int or none`."""
        words = {**_ARTICLES, NoneType: "none", bool: "true or false"} if in_url else _ARTICLES
        phrases: list[str] = []
        for part in (*(part for part in self.parts if part is not NoneType), NoneType):
            if part not in self.parts:
                continue
            if get_origin(part) is Literal:
                phrases += [str(item) if in_url else repr(item) for item in get_args(part)]
            elif part in words:
                phrases.append(words[part])
            elif _is_callable(part) and not in_url:
                phrases.append("a callable")
        return " or ".join([", ".join(phrases[:-1])] * (len(phrases) > 1) + phrases[-1:])


def schema_of(factory: object, label: str) -> dict[str, Option]:
    """Return the options of a factory by their names, in the order of its signature.

    Args:
        factory: what the entry point or the spec names: a class, or a function that returns a backend.
        label: the name of the backend for the errors, such as `backend 'sharded'`.

    Raises:
        BackendLoadError: it is not callable, has a parameter that is not keyword-only, or has no signature.
    """
    from inspect import Parameter, isclass, signature

    if not callable(factory):
        raise BackendLoadError(
            f"The factory of the {label} is {show(factory)}, which is not callable. {_NAME_A_FACTORY}"
        )
    kind = "class" if isclass(factory) else "factory"
    try:
        parameters = signature(factory).parameters.values()
    except (TypeError, ValueError, NameError) as exc:
        raise BackendLoadError(
            f"The {kind} of the {label} has no signature that can be read. {_NAME_A_FACTORY}"
        ) from exc
    for parameter in parameters:
        if parameter.kind is not Parameter.KEYWORD_ONLY:
            stars = "**" if parameter.kind is Parameter.VAR_KEYWORD else ""
            stars = "*" if parameter.kind is Parameter.VAR_POSITIONAL else stars
            raise BackendLoadError(
                f"The {kind} of the {label} has the parameter '{stars}{parameter.name}', "
                "which is not keyword-only. Put every parameter behind a '*' and give it a name."
            )
    namespace = _namespace(factory)
    return {
        parameter.name: Option(
            parameter.name,
            Any if parameter.annotation is Parameter.empty else _resolved(parameter.annotation, namespace),
            _REQUIRED if parameter.default is Parameter.empty else parameter.default,
        )
        for parameter in parameters
    }


def arguments_for(spec: Spec, schema: Mapping[str, Option], label: str) -> dict[str, object]:
    """Return the arguments with which a factory is called.

    Args:
        spec: the parsed spec.
        schema: the factory's options.
        label: the name of the backend for the errors.

    Raises:
        ConfigError: an option is unknown, missing, given twice or of a wrong type, or the URL has an address
            that the backend does not take.
    """
    arguments: dict[str, object] = {}
    for name in (*spec.texts, *spec.values):
        if name not in schema:
            raise ConfigError(f"The {label} has no option {show(name)}. {_known(name, schema)}")
    for name, text in spec.texts.items():
        arguments[name] = _value_of_text(schema[name], text, label)
    for name, value in spec.values.items():
        if not schema[name].accepts(value):
            raise _wrong_value(schema[name], value, label, in_url=False)
        arguments[name] = value
    _add_url(arguments, spec, schema, label)
    for name, option in schema.items():
        if option.required and name not in arguments:
            cure = "Use a whole URL as the spec" if name == "url" else "Give it in the spec or as a keyword"
            raise ConfigError(f"The {label} needs the option {name!r}, which is not given. {cure}.")
    return arguments


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a misspelt one probably means, in any letter case; None when none is near.

    >>> nearest("Memroy", ["memory", "virtual"]), nearest("kafka", ["memory", "virtual"])
    ('memory', None)
    """
    from difflib import get_close_matches

    by_folded = {other.casefold(): other for other in known}
    near = get_close_matches(name.casefold(), by_folded, n=1)
    return by_folded[near[0]] if near else None


def _add_url(arguments: dict[str, object], spec: Spec, schema: Mapping[str, Option], label: str) -> None:
    if spec.url is None:
        return
    if "url" in schema:
        if "url" in arguments:
            raise ConfigError("The option 'url' is given twice, because the spec itself is a URL. Give it once.")
        arguments["url"] = spec.url
    elif spec.address:
        shown = redacted(spec.url.partition("?")[0].partition("#")[0])
        raise ConfigError(
            f"The URL {shown!r} has a user, host, port, path or fragment, and the {label} takes none. "
            f"Write '{spec.backend}://', with options behind a '?'."
        )


def _known(name: str, schema: Mapping[str, Option]) -> str:
    if not schema:
        return "It takes none, so leave this one out."
    near = nearest(name, schema)
    hint = f"; {near!r} is the nearest" if near else ""
    return f"Use one of {', '.join(sorted(schema))}{hint}."


def _value_of_text(option: Option, text: str, label: str) -> object:
    value = option.convert(text)
    if value is not _NO:
        return value
    if option.textual:
        raise _wrong_value(option, text, label, in_url=True)
    raise ConfigError(
        f"The option {option.name!r} of the {label} cannot be given in a URL. Pass it as a keyword of create_registry."
    )


def _wrong_value(option: Option, value: object, label: str, *, in_url: bool) -> ConfigError:
    expected = option.expected(in_url=in_url)
    fault = f"must be {expected}, not {show(value, option.name)}"
    advice = "Give such a value"
    if option.default is None or isinstance(option.default, (int, float, str)):
        advice += f", or leave it out for {show(option.default, option.name)}"
    return ConfigError(f"The option {option.name!r} of the {label} {fault}. {advice}.")


# Annotations

_OPAQUE: Final = 7
_BREADTHS: Final = {NoneType: 0, int: 2, float: 3, bool: 4, str: 5, Any: 6, object: 6}


def _breadth(part: object) -> int:
    if get_origin(part) is Literal:
        return 1
    try:
        return _BREADTHS.get(part, _OPAQUE)  # type: ignore[call-overload, no-any-return]
    except TypeError:  # an annotation may be any object, also one without a hash
        return _OPAQUE


def _parts(annotation: object) -> Iterable[object]:
    annotation = getattr(annotation, "__value__", annotation)  # the type behind an alias `type Name = ...`
    if get_origin(annotation) in (Union, UnionType):
        return [part for member in get_args(annotation) for part in _parts(member)]
    return [annotation]


def _is_callable(part: object) -> bool:
    return part is collections.abc.Callable or get_origin(part) is collections.abc.Callable


def _is_a(value: object, kind: object) -> bool:
    """Check like `isinstance`, except that a bool is not a number and that an int serves as a float."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)  # type: ignore[arg-type]


def _accepts(part: object, value: object) -> bool:
    if get_origin(part) is Literal:
        return any(_is_a(value, type(item)) and value == item for item in get_args(part))
    if _is_callable(part):
        return callable(value)
    if 0 <= _breadth(part) <= _BREADTHS[str]:
        return _is_a(value, part)
    return True


def _converted(part: object, text: str) -> object:
    if part is NoneType:
        return None if text.casefold() == "none" else _NO
    if part is bool:
        return _WORDS.get(text.casefold(), _NO)
    if part is int or part is float:
        try:
            return part(text)
        except ValueError:
            return _NO
    if get_origin(part) is Literal:
        return next((item for item in get_args(part) if _converted(type(item), text) == item), _NO)
    return text if _breadth(part) < _OPAQUE else _NO


def _namespace(factory: object) -> dict[str, Any]:
    """Return the namespace in which the names in a factory's annotations are looked up."""
    from functools import partial
    from inspect import getattr_static, unwrap

    target: Any = factory
    while isinstance(target, partial):
        target = target.func
    target = unwrap(target)
    if isinstance(target, type):
        target = unwrap(getattr_static(target, "__init__"))
    elif not hasattr(target, "__globals__"):
        target = unwrap(type(target).__call__)
    return getattr(target, "__globals__", {})


def _resolved(annotation: object, namespace: dict[str, Any]) -> object:
    """Evaluate an annotation that is written as text; return the text when it names something that does not exist.

    Annotations are evaluated one at a time: if type checkers alone import a name, only its own option is not checked.
    """
    from typing import get_type_hints

    def stand_in() -> None: ...

    stand_in.__annotations__ = {"option": annotation}
    try:
        return get_type_hints(stand_in, globalns=namespace)["option"]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return annotation
