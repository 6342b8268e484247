"""What of a spec may stand in a test's name or a report: everything but its passwords.

The factory hides passwords in its own messages by itself. This is for what a backend says later, in the middle of a
test: its own errors may repeat the URL that it was given.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

__all__ = ["redaction", "shown"]

_HIDDEN: Final = "***"
_SECRET_OPTION: Final = re.compile(r"pass|secret|token|credential|auth|key", re.IGNORECASE)


def shown(spec: object) -> str:
    """A spec as a test's name shows it.

    >>> shown("redis://me:hunter2@host?db=1&token=abc"), shown("virtual://?start_ms=5")
    ('redis://***@host?db=1&token=***', 'virtual://?start_ms=5')
    """
    if isinstance(spec, Mapping):
        spec = spec.get("backend", "unnamed")
    return redaction(spec)(str(spec))


def redaction(spec: object) -> Callable[[str], str]:
    """A function that hides every password of this spec in a text.

    Args:
        spec: what `create_registry` takes: a name, a URL, a mapping, `package.module:factory`.

    >>> redaction("redis://me:hunter%32@host")("cannot log in at host with hunter2")
    'cannot log in at host with ***'
    """
    from urllib.parse import unquote, unquote_plus

    secrets = {form for one in _secrets(spec) for form in (one, unquote(one), unquote_plus(one), repr(one)[1:-1])}
    longest_first = sorted(secrets - {""}, key=len, reverse=True)
    if not longest_first:
        return str
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    return lambda text: pattern.sub(_HIDDEN, text)


def _secrets(spec: object) -> Iterator[str]:
    options = spec if isinstance(spec, Mapping) else {"backend": spec}
    for name, value in options.items():
        if not isinstance(value, str):
            continue
        if _SECRET_OPTION.search(str(name)):
            yield value
        rest = value.partition("://")[2]
        userinfo = rest.rpartition("@")[0]
        yield userinfo
        yield userinfo.partition(":")[2]
        for field in re.split(r"[?&#]", rest):
            option, _, text = field.partition("=")
            if _SECRET_OPTION.search(option):
                yield text
