"""The errors of stube: one small tree, each also the builtin that a Python user expects.

Wrong arguments of operations raise plain `TypeError` and `ValueError`, which are not defined here.
"""


class StubeError(Exception):
    """The root of every error that stube defines."""


class UnknownBackendError(StubeError, LookupError):
    """No backend has the name that a spec asks for."""


class BackendLoadError(StubeError, ImportError):
    """A backend is known but cannot be loaded: a missing extra, a failing import, two claims to one name."""


class ConfigError(StubeError, ValueError):
    """A spec or an option is wrong: its form, its name, its type or its range."""


class RegistryClosed(StubeError, RuntimeError):  # noqa: N818 - a state that is met, not a mistake
    """An adding operation was called on a registry that has been closed."""


class RegistryFull(StubeError, RuntimeError):  # noqa: N818
    """The timer or the publication would pass the registry's `max_pending`, which the message names with its value;
    nothing has changed."""


class ConversationEnded(StubeError, RuntimeError):  # noqa: N818
    """An adding method was called on a conversation that has ended; the addition is undone."""


class VirtualTimeError(StubeError, RuntimeError):
    """The virtual clock was asked for something impossible, or a handler keeps one instant from ending."""
