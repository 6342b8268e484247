"""Passwords: which parts of a spec are secret, and how a text is shown without them.

The factory looks through every error that comes out of a backend. `stube.testing` looks through the names of tests and
its reports, because a backend's own errors may repeat the URL that it was given.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["HIDDEN", "Secrets", "is_secret", "redacted", "shown"]

HIDDEN: Final = "***"
_SECRET_OPTION: Final = re.compile(r"pass|secret|token|credential|auth|key", re.IGNORECASE)


def is_secret(option: str) -> bool:
    """Tell whether an option is named like one whose value is a password."""
    return _SECRET_OPTION.search(option) is not None


def redacted(text: str) -> str:
    """Remove from `text` what may be a password: everything between the first ':' and the last '@'.

    >>> redacted("redis://:p@ss@host/0"), redacted("redis://:pass/0")
    ('redis:***@host/0', 'redis://:***/0')
    """
    text = re.sub(r":.*@", f":{HIDDEN}@", text, flags=re.DOTALL)
    # A text in the place of the port that is not a number is a password whose '@' was forgotten.
    return re.sub(r"(://[^/?#@]*):(?!\d*(?:[/?#]|$))[^/?#@]*", rf"\1:{HIDDEN}", text)


def shown(spec: object) -> str:
    """Return the backend of a spec as the name of a test shows it, without options of a mapping and without passwords.

    >>> shown("redis://me:hunter2@host?db=1&token=abc"), shown({"backend": "virtual://?start_ms=5", "url": "x"})
    ('redis://***@host?db=1&token=***', 'virtual://?start_ms=5')
    """
    text = spec.get("backend", "unnamed") if isinstance(spec, Mapping) else spec
    return Secrets(spec).redact(str(text))


class Secrets:
    """The passwords of a spec and its options, in every form in which a text may repeat them.

    Args:
        spec: what `create_registry` takes, or anything else that a caller gave it.
        keywords: the options that came with it.

    >>> secrets = Secrets("redis://me:p%40ss@host")
    >>> secrets.redact("cannot reach p@ss at host"), secrets.redact("cannot reach redis://me:P%40SS@host")
    ('cannot reach *** at host', 'cannot reach redis://***@host')
    """

    __slots__ = ("_pattern",)

    def __init__(self, spec: object, keywords: Mapping[str, object] | None = None) -> None:
        hidden, users = _secrets(spec, keywords or {})
        longest_first = [re.escape(form) for form in sorted(hidden, key=len, reverse=True)]
        # A user without a password may be a token. As it may also be a plain word, it is hidden inside URLs only.
        longest_first += [f"{re.escape(form)}(?=@)" for form in sorted(users, key=len, reverse=True)]
        self._pattern = re.compile("|".join(longest_first), re.IGNORECASE) if longest_first else None

    def redact(self, text: str) -> str:
        """Replace every form of every secret in `text`."""
        return self._pattern.sub(HIDDEN, text) if self._pattern else text

    def shown_by(self, exc: BaseException) -> bool:
        """Tell whether a secret is in the error, in its cause or context, or in an error of its group."""
        return self._pattern is not None and any(
            self._pattern.search(text) for error in _linked(exc) for text in _texts_of(error)
        )


def _secrets(spec: object, keywords: Mapping[str, object]) -> tuple[set[str], set[str]]:
    """Collect the texts to hide anywhere, and those to hide in front of an '@', both in every form."""
    hidden: set[str] = set()
    users: set[str] = set()
    options = {**spec, **keywords} if isinstance(spec, Mapping) else {"backend": spec, **keywords}
    for name, value in options.items():
        if not isinstance(value, str):
            continue
        if isinstance(name, str) and is_secret(name):
            hidden |= _forms(value, in_pieces=True)
        rest = value.partition("://")[2]
        userinfo = rest.rpartition("@")[0]
        password = userinfo.partition(":")[2]
        hidden |= _forms(password, in_pieces=True)
        (hidden if password else users).update(_forms(userinfo))
        for field in re.split(r"[?&#]", rest):
            option, _, text = field.partition("=")
            if is_secret(option):
                hidden |= _forms(text, in_pieces=True)
    return hidden, users


def _forms(secret: str, *, in_pieces: bool = False) -> set[str]:
    """Return the ways in which a text may repeat a secret; with `in_pieces` also its longer pieces.

    A parser that meets a bare delimiter in a decoded password complains about one piece of it.
    """
    if not secret:
        return set()
    from urllib.parse import quote, quote_plus, unquote, unquote_plus

    plain = {secret, unquote(secret), unquote_plus(secret)}
    if in_pieces:
        pieces = {piece for text in plain for piece in re.split(r"""[/?#@:\[\]\\'"]""", text)}
        plain |= {piece for piece in pieces if len(piece) > 3}
    lax = "surrogatepass"  # for an environment variable that is no UTF-8
    encoded = {
        form
        for text in plain
        for form in (quote(text, errors=lax), quote(text, safe="", errors=lax), quote_plus(text, errors=lax))
    }
    # A repr inside a repr escapes twice what needs it.
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
