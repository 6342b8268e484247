"""The forms of a spec, and what of it may be shown.

A spec says which backend is meant and with which options: a name, a URL, a mapping, or
`package.module:factory`. `parse_spec` brings the four to one form without knowing any backend. `Secrets`
knows what in them must not be seen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from stube._errors import ConfigError

__all__ = ["NAME", "TARGET", "Secrets", "Spec", "parse_spec", "redacted", "show"]

NAME: Final = re.compile(r"[\w.+-]+")
"""A backend's name."""
_DOTTED: Final = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
TARGET: Final = re.compile(rf"(?P<module>{_DOTTED}):(?P<attribute>{_DOTTED})")
"""`package.module:factory`; the factory may be a dotted path."""

HIDDEN: Final = "***"

_FORMS: Final = "Write a name ('memory'), a URL ('memory://?option=value') or 'package.module:factory'."
_SECRET_OPTION: Final = re.compile(r"pass|secret|token|credential|auth|api_?key", re.IGNORECASE)
_LONGEST: Final = 120  # characters of a value that a message shows


class Spec:
    """A parsed spec. A plain class, for the repr of anything richer would show the URL and its password."""

    __slots__ = ("address", "backend", "texts", "url", "values")

    def __init__(self, backend: str, url: str | None = None) -> None:
        self.backend = backend
        """A name, or `package.module:factory`."""
        self.url = url
        """The whole URL; None when the spec is none."""
        self.address = False
        """Whether the URL says more than a name and options: user, host, port, path or fragment."""
        self.texts: dict[str, str] = {}
        """The options of the URL's query: decoded, and still text."""
        self.values: dict[str, object] = {}
        """The options of the mapping and the keywords."""


def parse_spec(spec: object, keywords: Mapping[str, object]) -> Spec:
    """One form for every spec.

    Args:
        spec: what the caller of `create_registry` gave; anything at all.
        keywords: the options that came with it.

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
    # Split by hand: urllib drops tabs and newlines, and quotes the user and the password in its own errors.
    authority, behind = re.fullmatch(r"([^/?#]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    if "@" in behind:
        # A password with a bare '/', '?' or '#' looks like this: what seems to be path and query is its end.
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
    except UnicodeDecodeError:  # it holds the bytes, so it must not even become the context of another error
        return None


# What may be shown


def redacted(text: str) -> str:
    """`text` without whatever may be a password in it: all between the first ':' and the last '@'.

    >>> redacted("redis://:p@ss@host/0"), redacted("redis://:pass/0")
    ('redis:***@host/0', 'redis://:***/0')
    """
    text = re.sub(r":.*@", f":{HIDDEN}@", text, flags=re.DOTALL)
    # What stands at the place of a port and is no number is a password whose '@' was forgotten.
    return re.sub(r"(://[^/?#@]*):(?!\d*(?:[/?#]|$))[^/?#@]*", rf"\1:{HIDDEN}", text)


def show(value: object, option: str = "") -> str:
    """How a message shows a value: plain ones as Python writes them, others by their type.

    Args:
        value: what a caller gave. No code of its class runs.
        option: the name of the option that it is for; the values of those named like a password are hidden.

    >>> show("redis://:secret@host"), show([1, 2]), show("abc", "auth_token")
    ("'redis:***@host'", 'a list', "'***'")
    """
    if isinstance(value, str):
        text = HIDDEN if _SECRET_OPTION.search(option) else redacted(str.__str__(value))
        return repr(text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...")
    if value is None or type(value) in (bool, float):
        return repr(value)
    if type(value) is int:
        return repr(value) if value.bit_length() < 256 else f"an int of {value.bit_length()} bits"
    name = type(value).__name__
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"


class Secrets:
    """The passwords of a spec and its options, in every form in which a text may repeat them.

    Kept by the factory for as long as it runs: whatever error comes out of a backend is looked through.

    >>> secrets = Secrets("redis://:p%40ss@host", {})
    >>> secrets.redact("cannot reach p@ss at host"), secrets.redact("cannot reach P%40SS at host")
    ('cannot reach *** at host', 'cannot reach *** at host')
    """

    __slots__ = ("_pattern",)

    def __init__(self, spec: object, keywords: Mapping[str, object]) -> None:
        forms = {form for secret in _secrets(spec, keywords) if secret for form in _forms(secret)}
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE) if forms else None

    def redact(self, text: str) -> str:
        """`text` with every form of every secret replaced."""
        return self._pattern.sub(HIDDEN, text) if self._pattern else text

    def shown_by(self, exc: BaseException) -> bool:
        """Whether a secret is in the error, or in one that it was raised from, while handling, or with."""
        return self._pattern is not None and any(
            self._pattern.search(text) for error in _linked(exc) for text in _texts_of(error)
        )


def _secrets(spec: object, keywords: Mapping[str, object]) -> Iterator[str]:
    options = {**spec, **keywords} if isinstance(spec, Mapping) else {"backend": spec, **keywords}
    for name, value in options.items():
        if not isinstance(value, str):
            continue
        if isinstance(name, str) and _SECRET_OPTION.search(name):
            yield value
        _, _, rest = value.partition("://")
        userinfo, _, _ = rest.rpartition("@")
        yield userinfo.partition(":")[2]
        for field in re.split(r"[?&#]", rest):
            option, _, text = field.partition("=")
            if _SECRET_OPTION.search(option):
                yield text


def _forms(secret: str) -> set[str]:
    from urllib.parse import quote, quote_plus, unquote, unquote_plus

    plain = {secret, unquote(secret), unquote_plus(secret)}
    # A parser that meets a bare delimiter in a decoded password complains about one piece of it; and a repr
    # inside a repr escapes twice what needs it.
    pieces = {piece for text in plain for piece in re.split(r"""[/?#@:\[\]\\'"]""", text)}
    plain |= {piece for piece in pieces if len(piece) > 3}
    lax = "surrogatepass"  # for an environment variable that is no UTF-8
    encoded = {
        form
        for text in plain
        for form in (quote(text, errors=lax), quote(text, safe="", errors=lax), quote_plus(text, errors=lax))
    }
    in_bytes = {repr(text.encode(errors=lax))[2:-1] for text in plain}
    written = {form[1:-1] for text in plain for form in (repr(text), ascii(text))} | in_bytes
    return (plain | encoded | written) - {""}


def _linked(exc: BaseException) -> Iterator[BaseException]:
    seen: dict[int, BaseException] = {}
    waiting: list[BaseException | None] = [exc]
    while waiting:
        error = waiting.pop()
        if error is not None and id(error) not in seen:
            seen[id(error)] = error
            yield error
            waiting += [error.__cause__, error.__context__]
            if isinstance(error, BaseExceptionGroup):
                waiting += error.exceptions


def _texts_of(error: BaseException) -> Iterator[str]:
    yield str(error)
    yield repr(error)
    yield from getattr(error, "__notes__", ())
