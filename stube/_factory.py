"""From a spec to a running backend: finds the entry point, loads it, checks the options, calls the factory.

A factory is what an entry point names: the backend's class, or a function that returns a backend.

Backends are entry points of the group `stube.backends`; those that ship with stube are registered in the same way as
those of any other distribution. A backend is imported when a spec asks for it, and a module that only a call needs is
imported by the call, so that `import stube` stays cheap.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from stube._errors import BackendLoadError, ConfigError, UnknownBackendError
from stube._options import Option, arguments_for, nearest, schema_of
from stube._registry import AsyncBackend, Backend, VirtualBackend
from stube._secrets import Secrets
from stube._spec import TARGET, parse_spec, show

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["BackendInfo", "available_backends", "create_registry", "registry_from_env"]

GROUP: Final = "stube.backends"
VARIABLE: Final = "STUBE_REGISTRY"


@overload
def create_registry(spec: Literal["virtual"], /, **options: object) -> VirtualBackend: ...
@overload
def create_registry(spec: Literal["asyncio"], /, **options: object) -> AsyncBackend: ...
@overload
def create_registry(spec: str | Mapping[str, object] = "memory", /, **options: object) -> Backend: ...
def create_registry(spec: str | Mapping[str, object] = "memory", /, **options: object) -> Backend:
    """Create a registry.

    Args:
        spec: which backend, in one of four forms: a name (`"sharded"`); a URL whose query holds options
            (`"sharded://?shards=8"`); a mapping with the key `"backend"`, whose other keys are options
            (`{"backend": "sharded", "shards": 8}`, as it comes out of TOML or JSON; its `"backend"` may be
            any of the other forms); or a class or function (`"package.module:factory"`).
        options: options of the backend. In a URL they are text and are converted (`none` for `None`, `true`
            and `false`); elsewhere they must have the type that the backend declares.

    Returns:
        A new registry, which only the caller has. No thread runs and no connection is open yet (G23).

    Raises:
        UnknownBackendError: no installed backend has the name.
        BackendLoadError: the backend cannot be loaded: a missing extra, a failing import, two claims to one
            name.
        ConfigError: the spec is malformed; an option is unknown, missing, given twice, of a wrong type or
            range.

    The message of each says in one sentence what is wrong and in another what to do. A password in a URL is
    never part of it.

    >>> with create_registry("virtual://?start_ms=1000") as registry:
    ...     registry.now_ms
    1000.0
    >>> create_registry("memory", max_pending="many")  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    stube._errors.ConfigError: The option 'max_pending' of the backend 'memory' must be an int or None,
    not 'many'. Give such a value, or leave it out for 1000000.
    """
    return _create(spec, options)


def registry_from_env(default: str | Mapping[str, object] = "memory", **options: object) -> Backend:
    """Create a registry from the spec in the environment variable `STUBE_REGISTRY`.

    Args:
        default: the spec to use when the variable is unset or empty.
        options: as in `create_registry`.

    Raises:
        UnknownBackendError, BackendLoadError, ConfigError: as in `create_registry`; the message says when the
            spec came from the environment.

    >>> import os
    >>> os.environ["STUBE_REGISTRY"] = "virtual"
    >>> with registry_from_env() as registry:
    ...     "virtual_time" in registry.capabilities
    True
    >>> del os.environ["STUBE_REGISTRY"]
    """
    text = os.environ.get(VARIABLE)
    if not text:
        return _create(default, options)
    return _create(text, options, f"In the environment variable {VARIABLE}: ")


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One claim to a backend's name, as `available_backends` finds it."""

    name: str
    distribution: str
    """The name of the distribution that brings the backend."""
    version: str
    loads: bool
    """True when `create_registry` can use it."""
    error: str | None = None
    """The reason why it does not load, in two sentences; None when it loads."""
    options: tuple[str, ...] = ()
    """The names of its options, in the order of the signature of its class; empty when it does not load."""


def available_backends() -> list[BackendInfo]:
    """List every installed backend by name; also those that do not load, with the reason.

    This imports each of them. A name that two distributions claim is listed once for each. Each call looks at what is
    installed now; `create_registry` looks again only when `sys.path` has changed or when it does not find a name.

    >>> [info.name for info in available_backends() if info.distribution == "stube"]  # doctest: +ELLIPSIS
    [...'memory',...'virtual'...]
    """
    found = []
    for name, sources in sorted(_scan().items()):
        for source in sources:
            try:
                options = tuple(_load(_only(name, sources))[1])
            except BackendLoadError as exc:
                found.append(BackendInfo(name, source.distribution, source.version, False, str(exc)))
            else:
                found.append(BackendInfo(name, source.distribution, source.version, True, None, options))
    return found


# From a spec to a backend


def _create(spec: object, options: dict[str, object], origin: str = "") -> Backend:
    """Call `_build`, and rewrite its errors: no password in them or in their chain, and where the spec came from."""
    secrets = Secrets(spec, options)
    try:
        return _build(spec, options)
    except Exception as exc:
        error, cause = _presentable(exc, secrets, origin), exc.__cause__
        if error is exc:
            raise
        if cause is not None and secrets.shown_by(cause):
            cause = None
    # Outside the `except` block the original error is not the context of the new one, so no traceback can show it.
    raise error from cause


def _presentable(exc: Exception, secrets: Secrets, origin: str) -> Exception:
    """Return the error to raise in place of `exc`; `exc` itself when there is nothing to hide and nothing to add."""
    own = isinstance(exc, (UnknownBackendError, BackendLoadError, ConfigError))
    if not secrets.shown_by(exc) and not (own and origin):
        return exc
    text = secrets.redact(str(exc))
    if not own:
        text = f"The backend raised {type(exc).__name__}: {_two_sentences(text)}"
    if isinstance(exc, BackendLoadError):
        return BackendLoadError(origin + text, name=exc.name)
    return (UnknownBackendError if isinstance(exc, UnknownBackendError) else ConfigError)(origin + text)


def _build(spec: object, options: dict[str, object]) -> Backend:
    parsed = parse_spec(spec, options)
    source = _find(parsed.backend)
    factory, schema = _load(source)
    arguments = arguments_for(parsed, schema, source.label)
    try:
        backend: Backend = factory(**arguments)
    except ConfigError:
        raise
    except ValueError as exc:
        raise ConfigError(f"The {source.label} refuses its options: {_two_sentences(str(exc))}") from exc
    except ModuleNotFoundError as exc:
        raise _load_error(source, exc) from exc
    return backend


def _two_sentences(text: str) -> str:
    """Add a second sentence, what to do, to the text of a backend that has only one."""
    text = text.strip() or "it does not say more"
    if re.search(r"[.!?]\s+[A-Z]", text):
        return text
    return f"{text.rstrip('.')}. Change what this names."


# From a name to a factory


class _Source:
    """Where to find a factory, and which distribution brings it."""

    def __init__(self, name: str, target: str, distribution: str = "", version: str = "") -> None:
        self.name = name
        self.target = target
        """`package.module:attribute [extra]`, as an entry point writes it."""
        self.distribution = distribution
        """Empty when a spec names the factory itself."""
        self.version = version
        self.label = f"backend {name!r}"


def _find(backend: str) -> _Source:
    if TARGET.fullmatch(backend):
        return _Source(backend, backend)
    installed = _installed()
    if backend not in installed:
        installed = _scan()
    if backend in installed:
        return _only(backend, installed[backend])
    if not installed:
        advice = f"Install a distribution with entry points in the group {GROUP!r}, because there is none."
    else:
        near = nearest(backend, installed)
        hint = f"; {near!r} is the nearest" if near else ""
        advice = f"Use one of {', '.join(sorted(installed))}{hint}."
    raise UnknownBackendError(f"No backend is named {show(backend)}. {advice}")


_latest_scan: tuple[list[str], dict[str, list[_Source]]] = ([], {})
"""`sys.path` as it was, and what was installed there. Replaced as a whole and never changed, so it needs no lock."""


def _installed() -> dict[str, list[_Source]]:
    """Return the sources of each name, from the latest scan if `sys.path` is still the same.

    A scan reads the metadata of every distribution, which takes a hundred times as long as everything else that creates
    a registry. A distribution that was installed after the scan is missing here.
    """
    path, installed = _latest_scan
    return installed if path == sys.path else _scan()


def _scan() -> dict[str, list[_Source]]:
    """Scan what is installed now: the sources of each name, one for each distribution that claims it."""
    global _latest_scan
    from importlib.metadata import entry_points

    path = sys.path.copy()
    installed: dict[str, dict[str, _Source]] = {}
    for entry in entry_points(group=GROUP):
        distribution, version = _origin(entry)
        # An editable install and its build directory, say, are one distribution seen twice; the first counts.
        key = re.sub(r"[-_.]+", "-", distribution).lower()
        source = _Source(entry.name, entry.value, distribution, version)
        installed.setdefault(entry.name, {}).setdefault(key, source)
    found = {name: list(sources.values()) for name, sources in installed.items()}
    _latest_scan = path, found
    return found


def _origin(entry: EntryPoint) -> tuple[str, str]:
    # The metadata of a distribution may lack its name, its version, or both.
    metadata: Any = entry.dist.metadata if entry.dist else {}
    return metadata.get("Name") or "(unnamed)", metadata.get("Version") or "(unknown)"


def _only(name: str, sources: list[_Source]) -> _Source:
    if len(sources) == 1:
        return sources[0]
    claims = " and ".join(repr(source.distribution) for source in sources)
    targets = " or ".join(repr(source.target.partition("[")[0].strip()) for source in sources)
    raise BackendLoadError(
        f"The backend name {name!r} is claimed by the distributions {claims}. "
        f"Uninstall all but one of them, or use {targets} in place of the name."
    )


_latest_schemas: dict[str, tuple[object, dict[str, Option]]] = {}
"""For each target the factory that it named and that factory's schema, because reading a signature takes 0.3 ms."""


def _load(source: _Source) -> tuple[Any, dict[str, Option]]:
    """Import the factory; return it with its schema."""
    from functools import reduce
    from importlib import import_module

    target = TARGET.fullmatch(re.sub(r"\s+|\[.*", "", source.target))
    if target is None:
        raise BackendLoadError(
            f"The entry point {source.target!r} of the {source.label} is malformed. "
            "Write it as 'package.module:factory'."
        )
    try:
        module = import_module(target["module"])
    except Exception as exc:  # a backend's module may raise anything
        raise _load_error(source, exc) from exc
    try:
        factory = reduce(getattr, target["attribute"].split("."), module)
    except AttributeError as exc:
        raise BackendLoadError(
            f"The module {target['module']!r} of the {source.label} has no {target['attribute']!r}. "
            "Correct the part behind the ':' or install another version."
        ) from exc
    except Exception as exc:  # a module's __getattr__ may import
        raise _load_error(source, exc) from exc
    latest = _latest_schemas.get(source.target)
    if latest is None or latest[0] is not factory:  # the first use, or the module has been loaded anew
        latest = _latest_schemas[source.target] = factory, schema_of(factory, source.label)
    return latest


def _load_error(source: _Source, exc: Exception) -> BackendLoadError:
    module = source.target.partition(":")[0].strip()
    if isinstance(exc, ModuleNotFoundError) and exc.name:
        missing = exc.name.partition(".")[0]
        # If a module of the backend's own package is missing, the package is broken, and no extra would install it.
        if missing not in (module.partition(".")[0], "stube"):
            return BackendLoadError(
                f"The {source.label} needs the module {exc.name!r}, which is not installed. {_how_to_install(source)}",
                name=exc.name,
            )
    first_line = f"{type(exc).__name__}: {exc}".partition("\n")[0]
    cure = f"Repair or reinstall {source.distribution!r}" if source.distribution else "Correct spec or module"
    return BackendLoadError(
        f"The module {module!r} of the {source.label} cannot be imported, because it raises {first_line!r}. {cure}."
    )


def _how_to_install(source: _Source) -> str:
    if not source.distribution:
        return "Install the distribution that brings it."
    named = re.search(r"\[(.*)\]", source.target)
    extra = re.sub(r"\s", "", named[1]) if named else source.name
    return f"Install it with: pip install '{source.distribution}[{extra}]'"
