"""The conformance suite: `from stube.testing.suite import *` collects all of it.

It proves each guarantee of the contract on the backend that the fixture `stube_backend` or the option
`--stube-backend` names. It uses only the public interface: one operation writes, another one reads. Each test is marked
with the guarantees that it proves (`--stube-guarantee G5` selects by number). Its docstring names the case that it
reproduces and the fault that it would catch.
"""

from __future__ import annotations

from types import ModuleType

from stube.testing.suite import (
    _fixtures,
    test_backend,
    test_cancel_timers,
    test_cancelling,
    test_fair,
    test_faults,
    test_finalizers,
    test_forget_pending_flow,
    test_fork,
    test_handles,
    test_histories,
    test_install_dispatch,
    test_interrupts,
    test_leaks,
    test_life,
    test_order,
    test_pending_flow,
    test_publish,
    test_put_pending_flow,
    test_reentrancy,
    test_remove_subscriptions_for_cid,
    test_reset_state,
    test_schedule_event,
    test_state,
    test_stateful,
    test_subscribe,
    test_subscriptions,
    test_threads,
    test_time,
    test_unsubscribe,
    test_virtual_time,
)

_MODULES: tuple[ModuleType, ...] = (
    # The twelve operations, in their order.
    test_install_dispatch,
    test_put_pending_flow,
    test_pending_flow,
    test_forget_pending_flow,
    test_schedule_event,
    test_cancel_timers,
    test_subscribe,
    test_unsubscribe,
    test_remove_subscriptions_for_cid,
    test_publish,
    test_subscriptions,
    test_reset_state,
    # The rest of the public interface.
    test_backend,
    test_handles,
    # The themes.
    test_order,
    test_cancelling,
    test_time,
    test_fair,
    test_state,
    test_leaks,
    test_faults,
    test_reentrancy,
    test_finalizers,
    test_interrupts,
    test_threads,
    test_life,
    test_fork,
    test_virtual_time,
    # Random programs and histories.
    test_stateful,
    test_histories,
)

make_run = _fixtures.make_run
run = _fixtures.run

__all__ = ["make_run", "run"]  # and every test, below


def _export(module: ModuleType) -> None:
    """Make the tests of a file importable from here; of two tests with one name, one would hide the other."""
    for name, value in vars(module).items():
        if name.startswith("test_") and getattr(value, "__module__", None) == module.__name__:
            if name in globals():
                raise ImportError(f"Two tests of the suite are called {name}. Rename one.")
            globals()[name] = value
            __all__.append(name)


for _module in _MODULES:
    _export(_module)
