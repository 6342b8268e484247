"""The forms of a spec, and how a message shows a value.

A spec says which backend is meant and with which options: a name, a URL, a mapping, or
`package.module:factory`. `parse_spec` brings the four to one form without knowing any backend, and `show` writes
what a caller gave into a message.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from stube._errors import ConfigError
from stube._secrets import HIDDEN, is_secret, redacted

__all__ = ["NAME", "TARGET", "Spec", "parse_spec", "show"]

NAME: Final = re.compile(r"[\w.+-]+")
"""A backend's name."""
_DOTTED: Final = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
TARGET: Final = re.compile(rf"(?P<module>{_DOTTED}):(?P<attribute>{_DOTTED})")
"""`package.module:factory`; the factory, a class or a function, may be a dotted path."""

_FORMS: Final = "Write a name ('memory'), a URL ('memory://?option=value') or 'package.module:factory'."
_LONGEST: Final = 120  # characters of a value that a message shows


class Spec:
    """A parsed spec. It is a plain class, because the repr of a dataclass would show the URL with its password."""

    __slots__ = ("address", "backend", "texts", "url", "values")

    def __init__(self, backend: str, url: str | None = None) -> None:
        self.backend = backend
        """A name, or `package.module:factory`."""
        self.url = url
        """The whole URL; None when the spec is not a URL."""
        self.address = False
        """True when the URL has more than a name and options: a user, host, port, path or fragment."""
        self.texts: dict[str, str] = {}
        """The options of the URL's query: decoded, and still text."""
        self.values: dict[str, object] = {}
        """The options of the mapping and the keywords."""


def parse_spec(spec: object, keywords: Mapping[str, object]) -> Spec:
    """Bring a spec in any of its forms to one form.

    Args:
        spec: the argument of `create_registry`; it may be any object.
        keywords: the options that were given with it.

    Raises:
        ConfigError: the spec has a wrong type or a wrong form, or gives an option twice.
    """
    in_mapping: dict[str, object] = {}
    role = "A spec"
    if isinstance(spec, Mapping):
        in_mapping = _mapping_options(spec)
        role, spec = "The key 'backend' of a spec", in_mapping.pop("backend")
    if not isinstance(spec, str):
        allowed = "a str" if role.startswith("The key") else "a str or a mapping"
        raise ConfigError(f"{role} must be {allowed}, not {show(spec)}. {_FORMS}")
    parsed = _parse_text(str.__str__(spec))
    places = dict.fromkeys(parsed.texts, "in the URL")
    for place, options in (("in the mapping", in_mapping), ("as a keyword", keywords)):
        for name, value in options.items():
            if name in places:
                twice = f"{places[name]} and {place}"
                raise ConfigError(f"The option {show(name)} is given twice, {twice}. Give it once.")
            places[name] = place
            parsed.values[name] = value
    return parsed


def _mapping_options(spec: Mapping[object, object]) -> dict[str, object]:
    options: dict[str, object] = {}
    for key, value in spec.items():
        if not isinstance(key, str):
            raise ConfigError(f"A key of a spec must be a str, not {show(key)}. Name each option with a str.")
        options[str.__str__(key)] = value
    if "backend" not in options:
        raise ConfigError(
            "The spec is a mapping without the key 'backend'. Add it, with a name, a URL or 'package.module:factory'."
        )
    return options


def _parse_text(text: str) -> Spec:
    name, is_url, rest = text.partition("://")
    if not is_url and (NAME.fullmatch(text) or TARGET.fullmatch(text)):
        return Spec(text)
    if not is_url or not NAME.fullmatch(name):
        raise ConfigError(f"The spec {show(text)} is malformed. {_FORMS}")
    # The URL is not split by urllib, which drops tabs and newlines and quotes the user and the password in its errors.
    authority, behind = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in behind:
        # A password that contains an unencoded '/', '?' or '#' looks like this: the seeming path and query are its end.
        raise ConfigError(
            f"The URL {show(text)} has an '@' behind its host. "
            "Percent-encode special characters: '@' as %40, '/' as %2F, '?' as %3F, '#' as %23."
        )
    before_fragment, has_fragment, _ = behind.partition("#")
    path, _, query = before_fragment.partition("?")
    parsed = Spec(name, text)
    parsed.address = bool(authority or path or has_fragment)
    for option, value in _query_options(query):
        if option in parsed.texts:
            raise ConfigError(f"The option {show(option)} is given twice in the URL. Give it once.")
        parsed.texts[option] = value
    return parsed


def _query_options(query: str) -> Iterator[tuple[str, str]]:
    for field in query.split("&") if query else ():
        name, has_value, value = field.partition("=")
        if not (name and has_value):
            missing = "value" if name else "name"
            raise ConfigError(f"The URL has the option {show(name)} without a {missing}. Write name=value.")
        decoded = _percent_decoded(name), _percent_decoded(value)
        if None in decoded:
            raise ConfigError(f"The option {show(name)} in the URL is not UTF-8. Percent-encode UTF-8 bytes.")
        yield decoded[0] or "", decoded[1] or ""


def _percent_decoded(text: str) -> str | None:
    from urllib.parse import unquote_plus

    try:
        return unquote_plus(text, errors="strict")
    except UnicodeDecodeError:  # it contains the secret bytes, so it must not become the context of another error
        return None


def show(value: object, option: str = "") -> str:
    """Return a value as a message shows it: a plain value as Python writes it, any other by its type.

    Args:
        value: any object that a caller gave. No code of its class runs.
        option: the name of the option; if it is named like a password, the value is hidden.

    >>> show("redis://:secret@host"), show([1, 2]), show("abc", "auth_token")
    ("'redis:***@host'", 'a list', "'***'")
    """
    if isinstance(value, str):
        text = HIDDEN if is_secret(option) else redacted(str.__str__(value))
        return repr(text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...")
    if value is None or type(value) in (bool, float):
        return repr(value)
    if type(value) is int:
        return repr(value) if value.bit_length() < 256 else f"an int of {value.bit_length()} bits"
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"
