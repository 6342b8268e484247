"""Selection: every form of a spec, every way in which one is wrong, and what no message may show.

The distributions are real ones, written into a temporary directory: metadata, entry points and modules.
Nothing that is installed takes part, so that the messages are the same everywhere and can be compared word for
word.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import re
import subprocess
import sys
import textwrap
import threading
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sortedcontainers
from typing_extensions import override

import stube
from stube import (
    BackendInfo,
    BackendLoadError,
    ConfigError,
    UnknownBackendError,
    available_backends,
    create_registry,
    registry_from_env,
)
from stube._secrets import Secrets, shown

ROOT = Path(__file__).parents[1]
DEPENDENCIES = Path(sortedcontainers.__file__).parents[1]

PLAIN = """
    from __future__ import annotations

    from collections.abc import Callable
    from typing import TYPE_CHECKING, Any, Literal

    if TYPE_CHECKING:
        from asyncio import AbstractEventLoop

    class Fake:
        def __init__(self, options):
            self.options = options

    def create(
        *,
        shards: int = 8,
        ratio: float = 0.5,
        eager: bool = False,
        namespace: str = "stube",
        limit: int | None = 100,
        mode: Literal["fast", "safe", 3] = "fast",
        on_error: Callable[[str], None] | None = None,
        loop: AbstractEventLoop | None = None,
        anything: Any = (),
        bare=None,
        auth_token: str | None = None,
    ):
        if shards < 1:
            raise ValueError(f"shards must be at least 1, not {shards}.")
        if shards > 64:
            raise ValueError(f"shards must be at most 64, not {shards}. Give fewer.")
        if shards == 13:
            raise ValueError
        return Fake(dict(locals()))

    class Group:
        @staticmethod
        def make(*, shards: int = 8):
            return Fake({"shards": shards})
"""

SERVER = """
    from stube import ConfigError

    class Fake:
        def __init__(self, options):
            self.options = options

    def nested(url):
        try:
            raise ValueError(f"inner {url}")
        except ValueError:
            raise KeyError("lost")

    def create(*, url: str | None = None, fault: str = "", shards: int = 1):
        match fault:
            case "value":
                raise ValueError(f"cannot use {url}")
            case "repr":
                raise ValueError(f"cannot use {url!r}", url)
            case "decoded":
                from urllib.parse import unquote
                raise ValueError(f"cannot use {unquote(url)}")
            case "part":
                from urllib.parse import unquote, urlsplit
                urlsplit(unquote(url)).port
            case "bytes":
                raise ValueError(f"cannot use {url.encode()!r}")
            case "lower":
                raise ValueError(f"cannot use {url.lower()}")
            case "cause":
                try:
                    raise ValueError(f"inner {url}")
                except ValueError as exc:
                    raise ValueError("outer") from exc
            case "context":
                try:
                    raise ValueError(f"inner {url}")
                except ValueError:
                    raise ValueError("outer")
            case "note":
                error = ValueError("outer")
                error.add_note(f"while using {url}")
                raise error
            case "group":
                raise ExceptionGroup("outer", [ValueError(f"inner {url}")])
            case "config":
                raise ConfigError(f"The URL {url} is bad. Use another.")
            case "runtime":
                raise RuntimeError(f"no answer from {url}")
            case "nested":
                nested(url)
            case "module":
                raise ModuleNotFoundError(f"No module for {url}", name="driver")
        return Fake(dict(url=url, fault=fault, shards=shards))

    def needs_url(*, url: str):
        return Fake(dict(url=url))
"""


class Site:
    """A directory of distributions, alone on `sys.path` with the standard library."""

    def __init__(self, tmp_path: Path) -> None:
        self.root = tmp_path

    def add(
        self,
        distribution: str,
        entry_points: Mapping[str, str],
        modules: Mapping[str, str] | None = None,
        *,
        directory: str = "site",
    ) -> Path:
        """Install a distribution; give the directory that holds it."""
        site = self.root / directory
        info = site / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = [f"{name} = {value}" for name, value in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[stube.backends]", *lines, ""]))
        for path, source in (modules or {}).items():
            file = site / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.delenv("STUBE_REGISTRY", raising=False)
    library = [
        path for path in sys.path if path.startswith(sys.base_prefix) and not re.search("(site|dist)-packages", path)
    ]
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *library])
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def fakes(site: Site) -> Site:
    """Two backends: `sharded` knows every kind of option, `server` takes a URL."""
    site.add(
        "acme-stube",
        {"sharded": "acme.plain:create", "server": "acme.server:create", "strict": "acme.server:needs_url"},
        {"acme/__init__.py": "", "acme/plain.py": PLAIN, "acme/server.py": SERVER},
    )
    return site


def options_of(registry: Any) -> dict[str, Any]:
    return dict(registry.options)


def error_of(function: Callable[..., object], *args: Any, **options: Any) -> stube.StubeError:
    with pytest.raises(stube.StubeError) as caught:
        function(*args, **options)
    assert_two_sentences(str(caught.value))
    return caught.value


def assert_two_sentences(message: str) -> None:
    sentences = re.split(r"(?<=[.'\"])\s+(?=[A-Z])", message)
    assert len(sentences) == 2, message
    assert sentences[0].endswith("."), message
    assert sentences[1].endswith(".") or "pip install" in sentences[1], message


# The four forms


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("sharded", {}),
        ("sharded://", {}),
        ("sharded://?shards=3", {"shards": 3}),
        ("sharded://?shards=3&namespace=a+b%26c", {"shards": 3, "namespace": "a b&c"}),
        ({"backend": "sharded"}, {}),
        ({"backend": "sharded", "shards": 3}, {"shards": 3}),
        ({"backend": "sharded://?shards=3", "eager": True}, {"shards": 3, "eager": True}),
        ("acme.plain:create", {}),
        ({"backend": "acme.plain:create", "shards": 3}, {"shards": 3}),
    ],
)
def test_every_form_of_a_spec_reaches_the_factory(fakes: Site, spec: Any, options: dict[str, object]) -> None:
    defaults = options_of(create_registry("sharded"))
    assert options_of(create_registry(spec)) == {**defaults, **options}


def test_a_factory_may_stand_deep_in_its_module(fakes: Site) -> None:
    assert options_of(create_registry("acme.plain:Group.make", shards=2)) == {"shards": 2}


def test_keywords_join_the_options_of_a_url_and_of_a_mapping(fakes: Site) -> None:
    assert options_of(create_registry("sharded://?shards=3", ratio=1))["ratio"] == 1
    assert options_of(create_registry({"backend": "sharded", "shards": 3}, ratio=1))["shards"] == 3


def test_a_mapping_is_left_as_it_was(fakes: Site) -> None:
    spec = {"backend": "sharded", "shards": 3}
    create_registry(spec)
    assert spec == {"backend": "sharded", "shards": 3}


def test_the_default_is_memory(site: Site) -> None:
    site.add("acme", {"memory": "acme_plain:create"}, {"acme_plain.py": PLAIN})
    assert options_of(create_registry())["shards"] == 8


def test_a_str_subclass_serves_as_its_plain_string(fakes: Site) -> None:
    class Name(str):
        __slots__ = ()

        @override
        def __str__(self) -> str:
            return "other"

    assert options_of(create_registry(Name("sharded")))["shards"] == 8


@pytest.mark.parametrize("make", ["classes.Registry", "classes.partial", "classes.instance", "classes.wrapped"])
def test_any_callable_with_a_keyword_only_signature_is_a_factory(site: Site, make: str) -> None:
    source = """
        from __future__ import annotations
        import functools
        class Registry:
            def __init__(self, *, shards: int = 8):
                self.options = {"shards": shards}
        class Factory:
            def __call__(self, *, shards: int = 8):
                return Registry(shards=shards)
        instance = Factory()
        partial = functools.partial(Registry)
        @functools.wraps(Registry.__init__, assigned=())
        def inner(self, **options): ...
        def plain(*, shards: int = 8):
            return Registry(shards=shards)
        @functools.wraps(plain)
        def wrapped(*args, **options):
            return plain(*args, **options)
    """
    site.add("acme", {}, {"classes.py": source})
    spec = make.replace(".", ":")
    assert options_of(create_registry({"backend": spec}, shards=2)) == {"shards": 2}
    assert str(error_of(create_registry, spec, shards="2")) == (
        f"The option 'shards' of the backend '{spec}' must be an int, not '2'. "
        "Give such a value, or leave it out for 8."
    )


CLASS = """
    from __future__ import annotations

    from collections.abc import Callable

    class Base:
        def __init__(self, *, shards: int = 8, on_error: Callable[[str], None] | None = None):
            if shards < 1:
                raise ValueError(f"shards must be at least 1, not {shards}.")
            self.options = {"shards": shards, "on_error": on_error}

    class Registry(Base):
        "It has no __init__ of its own."

    class Bare:
        options = {}
"""


@pytest.fixture
def classes(site: Site) -> Site:
    """Backends whose entry points name classes."""
    entries = {"wide": "acme_class:Registry", "bare": "acme_class:Bare [fast]"}
    site.add("acme", entries, {"acme_class.py": CLASS})
    return site


def test_the_signature_of_a_class_is_the_schema(classes: Site) -> None:
    """Fault: a class whose __init__ is inherited from another module or class has no options."""
    assert options_of(create_registry("wide")) == {"shards": 8, "on_error": None}
    assert options_of(create_registry("wide://?shards=3&on_error=none")) == {"shards": 3, "on_error": None}
    assert options_of(create_registry("wide", shards=3, on_error=print)) == {"shards": 3, "on_error": print}
    assert options_of(create_registry("bare")) == {}
    assert [(info.name, info.options) for info in available_backends()] == [
        ("bare", ()),
        ("wide", ("shards", "on_error")),
    ]


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("wide", {"shard": 3}, "The backend 'wide' has no option 'shard'. "
         "Use one of on_error, shards; 'shards' is the nearest."),
        ("wide", {"shards": "3"}, "The option 'shards' of the backend 'wide' must be an int, not '3'. "
         "Give such a value, or leave it out for 8."),
        ("wide://?on_error=print", {}, "The option 'on_error' of the backend 'wide' cannot be given in a URL. "
         "Pass it as a keyword of create_registry."),
        ("wide", {"shards": 0}, "The backend 'wide' refuses its options: shards must be at least 1, not 0. "
         "Change what this names."),
        ("bare", {"shards": 3}, "The backend 'bare' has no option 'shards'. It takes none, so leave this one out."),
    ],
)  # fmt: skip
def test_errors_about_the_options_of_a_class(
    classes: Site, spec: str, options: dict[str, object], message: str
) -> None:
    error = error_of(create_registry, spec, **options)
    assert type(error) is ConfigError
    assert str(error) == message


# Conversion of text, and the check of values


@pytest.mark.parametrize(
    ("query", "option", "value"),
    [
        ("shards=12", "shards", 12),
        ("shards=-0", "shards", 0),
        ("ratio=2", "ratio", 2.0),
        ("ratio=1e-3", "ratio", 0.001),
        ("eager=true", "eager", True),
        ("eager=YES", "eager", True),
        ("eager=on", "eager", True),
        ("eager=1", "eager", True),
        ("eager=false", "eager", False),
        ("eager=No", "eager", False),
        ("eager=off", "eager", False),
        ("eager=0", "eager", False),
        ("namespace=", "namespace", ""),
        ("namespace=none", "namespace", "none"),
        ("namespace=8", "namespace", "8"),
        ("n%61mespace=%F0%9F%8C%8A", "namespace", "\N{WATER WAVE}"),
        ("limit=none", "limit", None),
        ("limit=None", "limit", None),
        ("limit=7", "limit", 7),
        ("mode=safe", "mode", "safe"),
        ("mode=3", "mode", 3),
        ("on_error=none", "on_error", None),
        ("anything=8", "anything", "8"),
        ("bare=8", "bare", "8"),
        ("auth_token=a%3Db", "auth_token", "a=b"),
    ],
)
def test_text_in_a_url_is_converted_by_the_annotation(fakes: Site, query: str, option: str, value: object) -> None:
    if option == "shards" and value == 0:
        assert "not 0" in str(error_of(create_registry, f"sharded://?{query}"))
        return
    got = options_of(create_registry(f"sharded://?{query}"))[option]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ratio", 2),
        ("limit", None),
        ("mode", 3),
        ("mode", "safe"),
        ("on_error", print),
        ("on_error", None),
        ("loop", object()),
        ("anything", [1]),
        ("bare", {}),
    ],
)
def test_a_value_of_the_declared_type_is_passed_on_as_it_is(fakes: Site, option: str, value: object) -> None:
    assert options_of(create_registry("sharded", **{option: value}))[option] is value
    assert options_of(create_registry({"backend": "sharded", option: value}))[option] is value


HINT = "Give such a value, or leave it out for"


@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("shards", "8", f"must be an int, not '8'. {HINT} 8."),
        ("shards", 8.0, f"must be an int, not 8.0. {HINT} 8."),
        ("shards", True, f"must be an int, not True. {HINT} 8."),
        ("shards", None, f"must be an int, not None. {HINT} 8."),
        ("shards", [8], f"must be an int, not a list. {HINT} 8."),
        ("ratio", False, f"must be a float, not False. {HINT} 0.5."),
        ("ratio", 1j, f"must be a float, not a complex. {HINT} 0.5."),
        ("eager", 1, f"must be a bool, not 1. {HINT} False."),
        pytest.param(
            "eager", 10**9999, f"must be a bool, not an int of 33216 bits. {HINT} False.", id="too long to print"
        ),
        ("namespace", b"x", f"must be a str, not a bytes. {HINT} 'stube'."),
        ("limit", "none", f"must be an int or None, not 'none'. {HINT} 100."),
        ("limit", True, f"must be an int or None, not True. {HINT} 100."),
        ("mode", "slow", f"must be 'fast', 'safe' or 3, not 'slow'. {HINT} 'fast'."),
        ("mode", True, f"must be 'fast', 'safe' or 3, not True. {HINT} 'fast'."),
        ("on_error", "print", f"must be a callable or None, not 'print'. {HINT} None."),
        ("auth_token", 5, f"must be a str or None, not 5. {HINT} None."),
        ("shards", "redis://:pass@host", f"must be an int, not 'redis:***@host'. {HINT} 8."),
        ("shards", "x" * 200, f"must be an int, not '{'x' * 117}...'. {HINT} 8."),
    ],
)
def test_a_value_of_another_type_is_refused(fakes: Site, option: str, value: object, fault: str) -> None:
    for error in (
        error_of(create_registry, "sharded", **{option: value}),
        error_of(create_registry, {"backend": "sharded", option: value}),
    ):
        assert type(error) is ConfigError
        assert str(error) == f"The option '{option}' of the backend 'sharded' {fault}"


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("shards=eight", f"must be an int, not 'eight'. {HINT} 8."),
        ("shards=1e3", f"must be an int, not '1e3'. {HINT} 8."),
        ("shards=", f"must be an int, not ''. {HINT} 8."),
        ("ratio=half", f"must be a float, not 'half'. {HINT} 0.5."),
        ("eager=maybe", f"must be true or false, not 'maybe'. {HINT} False."),
        ("limit=all", f"must be an int or none, not 'all'. {HINT} 100."),
        ("mode=slow", f"must be fast, safe or 3, not 'slow'. {HINT} 'fast'."),
        ("on_error=print", "cannot be given in a URL. Pass it as a keyword of create_registry."),
        ("loop=main", "cannot be given in a URL. Pass it as a keyword of create_registry."),
    ],
)
def test_text_that_does_not_convert_is_refused(fakes: Site, query: str, message: str) -> None:
    error = error_of(create_registry, f"sharded://?{query}")
    assert type(error) is ConfigError
    assert str(error) == f"The option '{query.partition('=')[0]}' of the backend 'sharded' {message}"


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (0, "shards must be at least 1, not 0. Change what this names."),
        (65, "shards must be at most 64, not 65. Give fewer."),
        (13, "it does not say more. Change what this names."),
    ],
)
def test_a_value_error_of_the_factory_becomes_a_config_error(fakes: Site, shards: int, message: str) -> None:
    error = error_of(create_registry, "sharded", shards=shards)
    assert type(error) is ConfigError
    assert str(error) == f"The backend 'sharded' refuses its options: {message}"
    assert type(error.__cause__) is ValueError


def test_other_errors_of_the_factory_pass_through(fakes: Site) -> None:
    with pytest.raises(RuntimeError, match=r"^no answer from None$"):
        create_registry("server", fault="runtime")
    with pytest.raises(ConfigError, match=r"^The URL None is bad\. Use another\.$"):
        create_registry("server", fault="config")


# Wrong specs

FORMS = "Write a name ('memory'), a URL ('memory://?option=value') or 'package.module:factory'."


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("shraded", UnknownBackendError,
         "No backend is named 'shraded'. Use one of server, sharded, strict; 'sharded' is the nearest."),
        ("SHARDED", UnknownBackendError,
         "No backend is named 'SHARDED'. Use one of server, sharded, strict; 'sharded' is the nearest."),
        ("kafka", UnknownBackendError, "No backend is named 'kafka'. Use one of server, sharded, strict."),
        ("kafka://u:pw@h/0?x=1", UnknownBackendError,
         "No backend is named 'kafka'. Use one of server, sharded, strict."),
        ({"backend": "kafka", "x": 1}, UnknownBackendError,
         "No backend is named 'kafka'. Use one of server, sharded, strict."),
        ("", ConfigError, f"The spec '' is malformed. {FORMS}"),
        (" ", ConfigError, f"The spec ' ' is malformed. {FORMS}"),
        (" sharded", ConfigError, f"The spec ' sharded' is malformed. {FORMS}"),
        ("sharded\n", ConfigError, f"The spec 'sharded\\n' is malformed. {FORMS}"),
        ("sharded:/?shards=8", ConfigError, f"The spec 'sharded:/?shards=8' is malformed. {FORMS}"),
        ("sharded:?shards=8", ConfigError, f"The spec 'sharded:?shards=8' is malformed. {FORMS}"),
        ("sharded?shards=8", ConfigError, f"The spec 'sharded?shards=8' is malformed. {FORMS}"),
        ("sharded:", ConfigError, f"The spec 'sharded:' is malformed. {FORMS}"),
        (":create", ConfigError, f"The spec ':create' is malformed. {FORMS}"),
        ("a:b:c", ConfigError, f"The spec 'a:b:c' is malformed. {FORMS}"),
        ("a..b:c", ConfigError, f"The spec 'a..b:c' is malformed. {FORMS}"),
        ("://?shards=8", ConfigError, f"The spec '://?shards=8' is malformed. {FORMS}"),
        ("acme.plain:create://?shards=8", ConfigError,
         f"The spec 'acme.plain:create://?shards=8' is malformed. {FORMS}"),
        (None, ConfigError, f"A spec must be a str or a mapping, not None. {FORMS}"),
        (8, ConfigError, f"A spec must be a str or a mapping, not 8. {FORMS}"),
        (b"sharded", ConfigError, f"A spec must be a str or a mapping, not a bytes. {FORMS}"),
        (["sharded"], ConfigError, f"A spec must be a str or a mapping, not a list. {FORMS}"),
        (ROOT, ConfigError, f"A spec must be a str or a mapping, not a {type(ROOT).__name__}. {FORMS}"),
        ({}, ConfigError, "The spec is a mapping without the key 'backend'. "
         "Add it, with a name, a URL or 'package.module:factory'."),
        ({"backend": 8}, ConfigError, f"The key 'backend' of a spec must be a str, not 8. {FORMS}"),
        ({"backend": {"backend": "sharded"}}, ConfigError,
         f"The key 'backend' of a spec must be a str, not a dict. {FORMS}"),
        ({"backend": "sharded", 8: 1}, ConfigError,
         "A key of a spec must be a str, not 8. Name each option with a str."),
        ("sharded://?", None, ""),
        ("sharded://?shards", ConfigError, "The URL has the option 'shards' without a value. Write name=value."),
        ("sharded://?=8", ConfigError, "The URL has the option '' without a name. Write name=value."),
        ("sharded://?shards=8&", ConfigError, "The URL has the option '' without a name. Write name=value."),
        ("sharded://?namespace=%ff", ConfigError,
         "The option 'namespace' in the URL is not UTF-8. Percent-encode UTF-8 bytes."),
        ("sharded://?shrads=8", ConfigError,
         "The backend 'sharded' has no option 'shrads'. Use one of anything, auth_token, bare, eager, limit, "
         "loop, mode, namespace, on_error, ratio, shards; 'shards' is the nearest."),
        ({"backend": "server", "zzz": 8}, ConfigError,
         "The backend 'server' has no option 'zzz'. Use one of fault, shards, url."),
        ("strict", ConfigError,
         "The backend 'strict' needs the option 'url', which is not given. Use a whole URL as the spec."),
    ],
)  # fmt: skip
def test_a_wrong_spec_is_refused_in_two_sentences(fakes: Site, spec: Any, kind: Any, message: str) -> None:
    if kind is None:
        create_registry(spec)
        return
    error = error_of(create_registry, spec)
    assert type(error) is kind
    assert str(error) == message
    assert error.__context__ is None or not isinstance(error.__context__, UnicodeError)


def test_an_unknown_keyword_is_refused(fakes: Site) -> None:
    assert str(error_of(create_registry, "server", shard=8)) == (
        "The backend 'server' has no option 'shard'. Use one of fault, shards, url; 'shards' is the nearest."
    )
    assert str(error_of(create_registry, "server", spec=8)).startswith("The backend 'server' has no option 'spec'.")


@pytest.mark.parametrize(
    ("spec", "keywords", "message"),
    [
        ("sharded://?shards=8&shards=8", {}, "The option 'shards' is given twice in the URL. Give it once."),
        ("sharded://?shards=8&sh%61rds=9", {}, "The option 'shards' is given twice in the URL. Give it once."),
        ("sharded://?shards=8", {"shards": 8},
         "The option 'shards' is given twice, in the URL and as a keyword. Give it once."),
        ({"backend": "sharded", "shards": 8}, {"shards": 8},
         "The option 'shards' is given twice, in the mapping and as a keyword. Give it once."),
        ({"backend": "sharded://?shards=8", "shards": 8}, {},
         "The option 'shards' is given twice, in the URL and in the mapping. Give it once."),
        ("server://h", {"url": "server://i"},
         "The option 'url' is given twice, because the spec itself is a URL. Give it once."),
        ("server://h?url=server://i", {},
         "The option 'url' is given twice, because the spec itself is a URL. Give it once."),
    ],
)  # fmt: skip
def test_an_option_given_twice_is_refused(fakes: Site, spec: Any, keywords: dict[str, Any], message: str) -> None:
    error = error_of(create_registry, spec, **keywords)
    assert type(error) is ConfigError
    assert str(error) == message


def test_without_any_backend_the_message_says_what_to_install(site: Site) -> None:
    assert str(error_of(create_registry, "memory")) == (
        "No backend is named 'memory'. "
        "Install a distribution with entry points in the group 'stube.backends', because there is none."
    )


def test_a_backend_without_options_says_so(site: Site) -> None:
    site.add("acme", {"bare": "acme_bare:create"}, {"acme_bare.py": "def create(): ..."})
    assert str(error_of(create_registry, "bare", shards=8)) == (
        "The backend 'bare' has no option 'shards'. It takes none, so leave this one out."
    )


def test_a_required_option_must_be_given(site: Site) -> None:
    site.add("acme", {"bare": "acme_bare:create"}, {"acme_bare.py": "def create(*, node: str): return node"})
    assert create_registry("bare", node="a") == "a"  # type: ignore[comparison-overlap]
    assert str(error_of(create_registry, "bare")) == (
        "The backend 'bare' needs the option 'node', which is not given. Give it in the spec or as a keyword."
    )
    assert str(error_of(create_registry, "bare", node=1)) == (
        "The option 'node' of the backend 'bare' must be a str, not 1. Give such a value."
    )


# URLs


def test_a_factory_with_url_gets_the_whole_url_and_its_options(fakes: Site) -> None:
    url = "server://user:pa%2Fss@host:6379/0?shards=3#part"
    assert options_of(create_registry(url)) == {"url": url, "fault": "", "shards": 3}
    assert options_of(create_registry("server")) == {"url": None, "fault": "", "shards": 1}
    assert options_of(create_registry("server", url="redis://host"))["url"] == "redis://host"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sharded://host", "sharded://host"),
        ("sharded://host:1?shards=2", "sharded://host:1"),
        ("sharded://:1", "sharded://:1"),
        ("sharded://user@", "sharded:***@"),
        ("sharded:///", "sharded:///"),
        ("sharded:///path", "sharded:///path"),
        ("sharded://#part", "sharded://"),
        ("sharded://user:pass@host", "sharded:***@host"),
        ("sharded://:pass", "sharded://:***"),
    ],
)
def test_a_factory_without_url_refuses_an_address(fakes: Site, url: str, shown: str) -> None:
    error = error_of(create_registry, url)
    assert type(error) is ConfigError
    assert str(error) == (
        f"The URL '{shown}' has a user, host, port, path or fragment, and the backend 'sharded' takes none. "
        "Write 'sharded://', with options behind a '?'."
    )


def test_an_at_sign_behind_the_host_is_refused_for_it_may_be_of_a_password(fakes: Site) -> None:
    for url in ("server://:pa/ss@host", "server://:pa?ss=1@host", "server://:pa#ss@host", "server://u:1?ss@host"):
        assert str(error_of(create_registry, url)) == (
            "The URL 'server:***@host' has an '@' behind its host. "
            "Percent-encode special characters: '@' as %40, '/' as %2F, '?' as %3F, '#' as %23."
        )


# What no error may show

PASSWORDS = [
    ("hunter2", ["hunter2"]),
    ("p%40ss%2Fquark", ["p%40ss%2Fquark", "p@ss/quark", "p%40ss/quark", "quark"]),
    ("p%2fss%3aquark", ["p%2fss%3aquark", "p/ss:quark", "p%2Fss%3Aquark", "quark"]),
    ("p@ss@word", ["p@ss@word", "ss@word", "p%40ss%40word"]),
    ("two+words%20more", ["two+words", "two words", "words%20more", "words more"]),
    ("naïve\\'key", ["naïve", "na\\xefve", "na%C3%AFve"]),
    ("tab\there", ["tab\there", "tab\\there", "tab%09here"]),
    (".*(x)[y]", [".*(x)", "%28x%29"]),
]

BAD = [
    "",
    "fault=value", "fault=repr", "fault=decoded", "fault=part", "fault=bytes", "fault=lower", "fault=cause",
    "fault=context", "fault=note", "fault=group", "fault=config", "fault=runtime", "fault=nested", "fault=module",
    "shards=x", "nope=1", "shards=1&shards=2", "shards", "=1", "shards=%ff",
]  # fmt: skip


def everything_shown_by(error: BaseException) -> str:
    """The text of the error, of all that hangs on it, and of a log record and a traceback that print it."""
    logged = logging.Formatter().formatException((type(error), error, error.__traceback__))
    texts = [logged, *traceback.format_exception(error)]
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is not None:
            texts += [str(current), repr(current), repr(current.args), repr(vars(current))]
            waiting += [current.__cause__, current.__context__]
    return "\n".join(texts).casefold()


def assert_hidden(error: BaseException, forms: list[str]) -> None:
    shown = everything_shown_by(error)
    for form in forms:
        assert form.casefold() not in shown, (form, shown)


@pytest.mark.parametrize(("password", "forms"), PASSWORDS)
@pytest.mark.parametrize("query", BAD)
def test_a_password_is_in_no_error(fakes: Site, password: str, forms: list[str], query: str) -> None:
    url = f"server://user:{password}@host:99/0?{query}"
    cases: list[tuple[Any, dict[str, Any]]] = [
        (url, {}),
        ({"backend": url}, {}),
        (url.replace("server", "sharded", 1), {}),
        (url.replace("server", "serv", 1), {}),
        (url.replace("server://", "server:/", 1), {}),
        (url, {"url": url}),
    ]
    raised = 0
    for spec, keywords in cases:
        error = None
        try:
            create_registry(spec, **keywords)
        except stube.StubeError as exc:
            error = exc
        if error is not None:
            raised += 1
            assert_hidden(error, forms)
    assert raised >= 4


@pytest.mark.parametrize("fault", [query.partition("=")[2] for query in BAD if query.startswith("fault=")])
def test_a_password_in_the_option_url_is_in_no_error(fakes: Site, fault: str) -> None:
    for spec, keywords in (
        ("server", {"url": "rediss://u:hunt%2Fer2@h", "fault": fault}),
        ({"backend": "server", "url": "rediss://u:hunt%2Fer2@h", "fault": fault}, {}),
    ):
        with pytest.raises(stube.StubeError) as caught:
            create_registry(spec, **keywords)
        assert_hidden(caught.value, ["hunt%2Fer2", "hunt/er2"])


def test_hidden_parts_become_stars_and_the_rest_remains(fakes: Site) -> None:
    url = "server://user:hunter2@host?fault="
    assert str(error_of(create_registry, url + "value")) == (
        "The backend 'server' refuses its options: cannot use server://***@host?fault=value. Change what this names."
    )
    assert str(error_of(create_registry, url + "config")) == (
        "The URL server://***@host?fault=config is bad. Use another."
    )
    assert str(error_of(create_registry, url + "runtime")) == (
        "The backend raised RuntimeError: no answer from server://***@host?fault=runtime. Change what this names."
    )


def test_a_harmless_cause_is_kept_beside_a_password(fakes: Site) -> None:
    source = "def create(*, url: str | None = None): raise ValueError('the host is down')"
    fakes.add("other", {"down": "other_down:create"}, {"other_down.py": source})
    error = error_of(create_registry, "down://user:hunter2@host")
    assert str(error.__cause__) == "the host is down"


def test_a_password_in_an_option_is_in_no_error(fakes: Site) -> None:
    for spec, keywords in (
        ("sharded", {"password": "hunter2"}),
        ("sharded://?passwd=hunter2", {}),
        ("sharded://?auth_token=hunter2&namespace=hunter2&shards=hunter2", {}),
        ("sharded", {"auth_token": "hunter2", "shards": "hunter2"}),
    ):
        assert_hidden(error_of(create_registry, spec, **keywords), ["hunter2"])


def test_a_password_from_the_environment_is_in_no_error(fakes: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for query in BAD[1:]:
        monkeypatch.setenv("STUBE_REGISTRY", f"server://user:hunter%2F2@host?{query}")
        with pytest.raises(stube.StubeError) as caught:
            registry_from_env()
        assert_hidden(caught.value, ["hunter%2F2", "hunter/2", "hunter"])


def test_a_user_without_a_password_is_hidden_in_urls_only() -> None:
    """Fault: a token in the place of the user is shown, or a plain word is removed from every sentence."""
    secrets = Secrets("redis://user@host")
    assert secrets.redact("the user of redis://user@host") == "the user of redis://***@host"
    assert secrets.redact("the user of redis://USER@host") == "the user of redis://***@host"
    assert Secrets("redis://host").redact("user@host") == "user@host"
    assert Secrets("redis://@host").redact("user@host") == "user@host"


@pytest.mark.parametrize("option", ["api_key", "KEY", "password", "client_secret", "x-auth", "token2", "credentials"])
def test_options_named_like_a_password_are_hidden_in_every_form(option: str) -> None:
    """Fault: the conformance report hides an option that the factory's errors show."""
    for secrets in (Secrets(f"redis://?{option}=a%3Db"), Secrets({"backend": "redis"}, {option: "a=b"})):
        assert secrets.redact("it was A=B, or a%3db") == "it was ***, or ***"
    assert shown(f"redis://?{option}=a%3Db") == f"redis://?{option}=***"


# Loading


def test_a_missing_driver_names_the_extra(site: Site) -> None:
    site.add(
        "acme-stube",
        {
            "redis": "acme_redis:create",
            "nats": "acme_redis:create [nats-py, fast]",
            "lazy": "acme_lazy:create",
            "inner": "acme_inner.backend:create",
        },
        {
            "acme_redis.py": "import no_such_driver.client\ndef create(): ...",
            "acme_lazy.py": "def create():\n    import no_such_driver",
            "acme_inner/__init__.py": "",
            "acme_inner/backend.py": "import acme_inner.forgotten",
        },
    )
    for name, module, extra in (
        ("redis", "no_such_driver", "redis"),
        ("nats", "no_such_driver", "nats-py,fast"),
        ("lazy", "no_such_driver", "lazy"),
    ):
        error = error_of(create_registry, name)
        assert type(error) is BackendLoadError
        assert str(error) == (
            f"The backend '{name}' needs the module '{module}', which is not installed. "
            f"Install it with: pip install 'acme-stube[{extra}]'"
        )
        assert isinstance(error.__cause__, ModuleNotFoundError)
        assert error.name == module
    assert str(error_of(create_registry, "acme_redis:create")) == (
        "The backend 'acme_redis:create' needs the module 'no_such_driver', which is not installed. "
        "Install the distribution that brings it."
    )
    assert str(error_of(create_registry, "inner")) == (
        "The module 'acme_inner.backend' of the backend 'inner' cannot be imported, because it raises "
        "\"ModuleNotFoundError: No module named 'acme_inner.forgotten'\". Repair or reinstall 'acme-stube'."
    )


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("1 / 0", "'ZeroDivisionError: division by zero'"),
        ("raise RuntimeError('one\\ntwo')", "'RuntimeError: one'"),
        ("from collections import nothing_here", None),
        ("def", None),
    ],
)
def test_a_module_that_fails_to_import_keeps_its_cause(site: Site, source: str, shown: str | None) -> None:
    site.add("acme", {"broken": "acme_broken:create"}, {"acme_broken.py": source})
    error = error_of(create_registry, "broken")
    assert type(error) is BackendLoadError
    cause = error.__cause__
    assert cause is not None
    shown = shown or repr(f"{type(cause).__name__}: {cause}")
    assert str(error) == (
        f"The module 'acme_broken' of the backend 'broken' cannot be imported, because it raises {shown}. "
        "Repair or reinstall 'acme'."
    )


def test_a_factory_that_is_not_there(fakes: Site) -> None:
    assert str(error_of(create_registry, "acme.plain:creat")) == (
        "The module 'acme.plain' of the backend 'acme.plain:creat' has no 'creat'. "
        "Correct the part behind the ':' or install another version."
    )
    assert str(error_of(create_registry, "acme.nope:create")) == (
        "The module 'acme.nope' of the backend 'acme.nope:create' cannot be imported, because it raises "
        "\"ModuleNotFoundError: No module named 'acme.nope'\". Correct spec or module."
    )


NAME_A_FACTORY = "Name a class or a function that is written in Python and takes (*, option: type = default)."


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("create = 5", f"The factory of the backend 'odd' is 5, which is not callable. {NAME_A_FACTORY}"),
        ("def create(shards=8): ...", "The factory of the backend 'odd' has the parameter 'shards', which is not "
         "keyword-only. Put every parameter behind a '*' and give it a name."),
        ("def create(shards, /): ...", "The factory of the backend 'odd' has the parameter 'shards', which is not "
         "keyword-only. Put every parameter behind a '*' and give it a name."),
        ("def create(*shards: int): ...", "The factory of the backend 'odd' has the parameter '*shards', which is "
         "not keyword-only. Put every parameter behind a '*' and give it a name."),
        ("def create(*, a=1, **rest): ...", "The factory of the backend 'odd' has the parameter '**rest', which "
         "is not keyword-only. Put every parameter behind a '*' and give it a name."),
        ("create = type", f"The class of the backend 'odd' has no signature that can be read. {NAME_A_FACTORY}"),
        ("create = 'x'.join", "The factory of the backend 'odd' has the parameter 'iterable', which is not "
         "keyword-only. Put every parameter behind a '*' and give it a name."),
        ("class create:\n    def __init__(self, shards=8): ...", "The class of the backend 'odd' has the parameter "
         "'shards', which is not keyword-only. Put every parameter behind a '*' and give it a name."),
        ("class create:\n    def __init__(self, *shards): ...", "The class of the backend 'odd' has the parameter "
         "'*shards', which is not keyword-only. Put every parameter behind a '*' and give it a name."),
        ("class create:\n    def __init__(self, *, a=1, **rest): ...", "The class of the backend 'odd' has the "
         "parameter '**rest', which is not keyword-only. Put every parameter behind a '*' and give it a name."),
    ],
)  # fmt: skip
def test_a_factory_of_the_wrong_shape_is_refused(site: Site, source: str, message: str) -> None:
    site.add("acme", {"odd": "acme_odd:create"}, {"acme_odd.py": source})
    error = error_of(create_registry, "odd")
    assert type(error) is BackendLoadError
    assert str(error) == message


def test_a_malformed_entry_point_is_refused(site: Site) -> None:
    site.add("acme", {"odd": "acme_odd", "odder": "acme odd:"})
    for name, value in (("odd", "acme_odd"), ("odder", "acme odd:")):
        assert str(error_of(create_registry, name)) == (
            f"The entry point '{value}' of the backend '{name}' is malformed. Write it as 'package.module:factory'."
        )


def test_two_distributions_with_one_name_are_refused(fakes: Site) -> None:
    fakes.add("other", {"sharded": "other_plain:create [fast]"}, {"other_plain.py": PLAIN})
    error = error_of(create_registry, "sharded")
    assert type(error) is BackendLoadError
    claims = sorted(re.findall(r"'([\w-]+)' and '([\w-]+)'", str(error))[0])
    assert claims == ["acme-stube", "other"]
    assert re.sub(r"'acme-stube' and 'other'|'other' and 'acme-stube'", "BOTH", str(error)) in (
        "The backend name 'sharded' is claimed by the distributions BOTH. Uninstall all but one of them, "
        "or use 'acme.plain:create' or 'other_plain:create' in place of the name.",
        "The backend name 'sharded' is claimed by the distributions BOTH. Uninstall all but one of them, "
        "or use 'other_plain:create' or 'acme.plain:create' in place of the name.",
    )
    assert options_of(create_registry("acme.plain:create"))["shards"] == 8
    assert options_of(create_registry("server"))["shards"] == 1


def test_one_distribution_seen_twice_is_one(fakes: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    again = fakes.add("Acme_Stube", {"sharded": "acme.plain:create"}, directory="again")
    monkeypatch.setattr(sys, "path", [*sys.path, str(again), sys.path[0]])
    assert options_of(create_registry("sharded"))["shards"] == 8
    assert [info.name for info in available_backends()] == ["server", "sharded", "strict"]


# What is remembered between two calls


@pytest.fixture
def scans(fakes: Site, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that the installed distributions are scanned."""
    found: list[str] = []
    real = importlib.metadata.entry_points

    def entry_points(*, group: str) -> Any:
        found.append(group)
        return real(group=group)

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return found


def test_the_distributions_are_scanned_once(scans: list[str]) -> None:
    """Fault: each call reads the metadata of everything that is installed."""
    for spec in ("sharded", "sharded://?shards=3", "server", {"backend": "strict", "url": "x"}, "acme.plain:create"):
        create_registry(spec)
    assert scans == ["stube.backends"]


def test_a_distribution_installed_later_is_found(fakes: Site, scans: list[str]) -> None:
    """Fault: a name that the first scan did not find stays unknown until the process ends."""
    assert type(error_of(create_registry, "later")) is UnknownBackendError
    fakes.add("other", {"later": "other_later:create"}, {"other_later.py": PLAIN})
    before = len(scans)
    assert options_of(create_registry("later", shards=3))["shards"] == 3
    assert len(scans) == before + 1
    assert options_of(create_registry("later", shards=4))["shards"] == 4
    assert len(scans) == before + 1


def test_the_list_shows_what_was_installed_after_the_first_scan(fakes: Site) -> None:
    """Fault: the list comes from the scan that an earlier call made."""
    create_registry("sharded")
    fakes.add("other", {"later": "other_later:create"}, {"other_later.py": PLAIN})
    assert [info.name for info in available_backends()] == ["later", "server", "sharded", "strict"]


def test_a_changed_search_path_is_scanned_anew(fakes: Site, scans: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault: a backend that was found on the old path is used although it is no longer there."""
    create_registry("sharded")
    monkeypatch.setattr(sys, "path", sys.path[1:])
    assert type(error_of(create_registry, "sharded")) is UnknownBackendError


def test_threads_that_create_registries_at_the_same_time_all_succeed(fakes: Site) -> None:
    """Fault: one thread sees the scan of another one before it is complete."""
    barrier = threading.Barrier(8)

    def create(number: int) -> object:
        barrier.wait(30)
        return options_of(create_registry("sharded", shards=number))["shards"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(create, range(1, 9))) == list(range(1, 9))


def test_a_module_that_was_loaded_anew_has_its_own_options(fakes: Site) -> None:
    """Fault: the options are those of the module that was loaded first."""
    fakes.add("other", {"later": "other_later:create"}, {"other_later.py": PLAIN})
    create_registry("later", shards=3)
    module = importlib.import_module("other_later")
    module.create = lambda *, threads: module.Fake({"threads": threads})  # type: ignore[attr-defined]
    assert options_of(create_registry("later", threads=2)) == {"threads": 2}
    assert "has no option 'shards'" in str(error_of(create_registry, "later", shards=3))


# The environment


@pytest.mark.parametrize("value", [None, ""])
def test_an_unset_or_empty_variable_means_the_default(
    fakes: Site, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is not None:
        monkeypatch.setenv("STUBE_REGISTRY", value)
    assert options_of(registry_from_env("sharded", shards=2))["shards"] == 2
    assert options_of(registry_from_env(default={"backend": "sharded", "shards": 3}))["shards"] == 3
    assert str(error_of(registry_from_env)) == ("No backend is named 'memory'. Use one of server, sharded, strict.")


def test_the_variable_wins_over_the_default(fakes: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUBE_REGISTRY", "sharded://?shards=5")
    assert options_of(registry_from_env("server", ratio=0.25))["shards"] == 5


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("shraded", UnknownBackendError,
         "No backend is named 'shraded'. Use one of server, sharded, strict; 'sharded' is the nearest."),
        ("sharded:/", ConfigError, f"The spec 'sharded:/' is malformed. {FORMS}"),
        ("sharded://?shards=0", ConfigError, "The backend 'sharded' refuses its options: "
         "shards must be at least 1, not 0. Change what this names."),
        ("acme.plain:creat", BackendLoadError, "The module 'acme.plain' of the backend 'acme.plain:creat' has no "
         "'creat'. Correct the part behind the ':' or install another version."),
    ],
)  # fmt: skip
def test_an_error_says_that_the_spec_came_from_the_environment(
    fakes: Site, monkeypatch: pytest.MonkeyPatch, value: str, kind: Any, message: str
) -> None:
    monkeypatch.setenv("STUBE_REGISTRY", value)
    error = error_of(registry_from_env, "server")
    assert type(error) is kind
    assert str(error) == f"In the environment variable STUBE_REGISTRY: {message}"


def test_a_cause_survives_the_mention_of_the_environment(fakes: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUBE_REGISTRY", "sharded://?shards=0")
    assert type(error_of(registry_from_env).__cause__) is ValueError


def test_an_environment_that_is_no_utf8_is_a_clear_error(fakes: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUBE_REGISTRY", "server://u:\udcff\udcfe@h?shards=x")
    assert_hidden(error_of(registry_from_env), ["\udcff"])


# The list


def test_the_list_tells_what_loads_and_why_not(fakes: Site) -> None:
    fakes.add(
        "other",
        {"redis": "other_redis:create", "server": "other_redis:create"},
        {"other_redis.py": "import no_such_driver"},
    )
    found = {(info.name, info.distribution): info for info in available_backends()}
    assert list(found) == sorted(found, key=lambda key: key[0])
    assert found["sharded", "acme-stube"] == BackendInfo(
        "sharded",
        "acme-stube",
        "1.2",
        loads=True,
        options=(
            "shards", "ratio", "eager", "namespace", "limit", "mode", "on_error", "loop", "anything", "bare",
            "auth_token",
        ),
    )  # fmt: skip
    assert found["redis", "other"] == BackendInfo(
        "redis",
        "other",
        "1.2",
        loads=False,
        error="The backend 'redis' needs the module 'no_such_driver', which is not installed. "
        "Install it with: pip install 'other[redis]'",
    )
    for distribution in ("acme-stube", "other"):
        claim = found["server", distribution]
        assert not claim.loads
        assert claim.error is not None
        assert claim.error.startswith("The backend name 'server' is claimed by the distributions ")


def test_the_list_is_empty_when_nothing_is_installed(site: Site) -> None:
    assert available_backends() == []


def test_metadata_without_a_name_or_version_still_lists(site: Site) -> None:
    directory = site.add("acme", {"sharded": "acme_plain:create"}, {"acme_plain.py": PLAIN})
    (directory / "acme-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\n")
    [info] = available_backends()
    assert (info.distribution, info.version, info.loads) == ("(unnamed)", "(unknown)", True)


# The kinds of registry


@pytest.mark.parametrize(
    ("spec", "virtual", "awaits"),
    [("memory", False, False), ("sharded", False, False), ("virtual", True, False), ("asyncio", False, True)],
)
def test_the_kind_of_a_registry_is_told(spec: str, virtual: bool, awaits: bool) -> None:
    with create_registry(spec) as registry:
        assert (stube.is_virtual(registry), stube.is_async(registry)) == (virtual, awaits)


@pytest.mark.parametrize(
    ("capabilities", "methods", "virtual", "awaits"),
    [
        (["virtual_time"], ["advance", "advance_async", "run_until_idle"], True, False),
        (["virtual_time"], ["advance", "advance_async"], False, False),
        ([], ["advance", "advance_async", "run_until_idle"], False, False),
        (["coroutine_dispatch"], ["settled", "joined", "aclose"], False, True),
        (["coroutine_dispatch"], ["settled", "joined"], False, False),
        ([], ["settled", "joined", "aclose"], False, False),
        (["coroutine_dispatch", "virtual_time"], ["settled", "joined", "aclose"], False, False),
        (None, ["advance", "advance_async", "run_until_idle", "settled", "joined", "aclose"], False, False),
    ],
)
def test_a_kind_needs_the_capability_and_the_methods(
    capabilities: list[str] | None, methods: list[str], virtual: bool, awaits: bool
) -> None:
    """Fault: a wrapper that hands on the capabilities, but not the methods, is taken for a virtual registry."""
    registry: Any = SimpleNamespace(**dict.fromkeys(methods, print))
    if capabilities is not None:
        registry.capabilities = frozenset(capabilities)
    assert (stube.is_virtual(registry), stube.is_async(registry)) == (virtual, awaits)


class Callables:
    async def method(self, *arguments: object) -> None: ...

    async def __call__(self, *arguments: object) -> None: ...


@pytest.mark.parametrize(
    ("function", "awaited"),
    [
        (Callables().method, True),
        (Callables(), True),
        (partial(Callables().method, 1), True),
        (partial(partial(Callables(), 1), 2), True),
        (Callables, False),
        (partial(Callables), False),
        (print, False),
        (lambda cid, event: None, False),
        (5, False),
    ],
)
def test_a_coroutine_function_is_recognised_in_every_wrapping(function: object, awaited: bool) -> None:
    """Fault: an object with an async `__call__`, or a partial of one, is taken for a plain function."""
    assert stube.is_coroutine_function(function) is awaited


# The shipped backends, and what importing costs


def test_the_shipped_entry_points_resolve(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    names = project["project"]["entry-points"]["stube.backends"]
    site.add("stube", names)
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT / "backends"), str(DEPENDENCIES)])
    found = {info.name: info for info in available_backends() if info.name in names}
    assert {name: info.error for name, info in found.items()} == dict.fromkeys(names)
    for name in names:
        with create_registry(name, max_pending=5) as registry:
            assert registry.stats().balanced
        with create_registry(f"{name}://?max_pending=none") as registry:
            assert registry.stats().balanced
        assert type(error_of(create_registry, name, max_pending=0)) is ConfigError


def run(code: str, **environment: str) -> str:
    """Run code in an interpreter of its own that finds stube where this one did."""
    paths = [str(Path(stube.__file__).parents[1]), str(ROOT / "backends")]
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-c",
            f"import sys; sys.path[:] = [*{paths!r}, *sys.path, {str(DEPENDENCIES)!r}]\n{textwrap.dedent(code)}",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "", **environment},
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_importing_stube_loads_no_backend_and_nothing_heavy() -> None:
    loaded = run("""
        before = set(sys.modules)
        import stube
        print(*sorted(set(sys.modules) - before))
    """).split()
    assert "stube._factory" in loaded
    heavy = {
        "asyncio", "concurrent", "difflib", "email", "http", "json", "logging", "pytest", "socket",
        "sortedcontainers", "starlette", "stube_backends", "subprocess", "tomllib", "urllib", "uvicorn",
    }  # fmt: skip
    assert not heavy & {name.partition(".")[0] for name in loaded}
    assert "importlib.metadata" not in loaded
    assert "stube.testing" not in loaded
    assert "stube.demo" not in loaded
    assert "stube.cli" not in loaded


def test_importing_the_factory_alone_needs_no_inspection_of_signatures() -> None:
    # `dataclasses` imports `inspect` in any case. These modules must not import it before a call needs it.
    for module in ("_factory", "_options", "_secrets", "_spec"):
        source = (Path(stube.__file__).parent / f"{module}.py").read_text(encoding="utf-8")
        late = "inspect|importlib|urllib|difflib|logging|asyncio"
        assert not re.search(rf"^(?:import|from) (?:{late})", source, re.MULTILINE)


def test_creating_one_backend_loads_no_other() -> None:
    loaded = run("""
        import stube
        stube.create_registry("stube_backends.virtual:VirtualRegistry").close()
        print(*sys.modules)
    """).split()
    assert "stube_backends.virtual" in loaded
    others = {"stube_backends.sharded", "stube_backends.aio", "stube_backends.redis", "asyncio"}
    assert not others & set(loaded)
