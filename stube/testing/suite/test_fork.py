"""Forks: from a quiet parent, from inside a delivery, under load, by a server with workers (G25)."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import pytest

from stube import Backend, Stats
from stube.testing._contract.capabilities import requires
from stube.testing._harness import run_script
from stube.testing.suite._fixtures import costly, guarantee

_FORK = """
failed = []
run = Driver(make(max_pending=4, on_error=lambda cid, event, exception: failed.append(event.name)))
registry = run.registry

def fail(cid, event):
    raise LookupError(event.name)

run.recorder.on("fails", fail)
without_thread = make()
for one in (registry, without_thread):
    one.put_pending_flow("c1", "flow")
    one.subscribe(cid="c1", instance_id="main", topic="t", event="said")
of_the_parent = registry.schedule_event(cid="c1", instance_id="main", delay_ms=150, event="of the parent")
run.settle()
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    try:
        assert registry.stats() == stube.Stats(), registry.stats()
        assert without_thread.stats() == stube.Stats(), without_thread.stats()
        own = run.schedule(3_600_000)
        assert of_the_parent.cancel() is False and own.cancel() is True, "a handle reaches beyond the fork"
        assert registry.subscriptions() == {} and registry.inspect() == {}
        assert registry.pending_flow("c1") is None and registry.cancel_timers("c1") == 0
        run.schedule(0, "of the child")
        run.subscribe("t", "said in the child")
        assert registry.publish("t", 1) == 1
        run.pass_time(5)
        assert sorted(run.recorder.names) == ["of the child", "said in the child"], run.recorder.names
        import logging
        logging.getLogger("stube").setLevel(logging.CRITICAL + 1)
        run.schedule(0, "fails")
        run.pass_time(5)
        assert failed == ["fails"], "the child's on_error is another one"
        for number in range(4):
            run.schedule(3_600_000)
        try:
            run.schedule(3_600_000)
        except stube.RegistryFull:
            pass
        else:
            raise AssertionError("the child has other options")
        grandchild = os.fork()
        if grandchild == 0:
            os._exit(0 if registry.stats() == stube.Stats() else 7)
        assert os.waitpid(grandchild, 0)[1] == 0, "the child's child has what the child holds"
        run.pass_time(0) if run.clock is not None else threading.Event().wait(0.25)
        assert run.recorder.names.count("of the parent") == 0
        assert run.registry.close()
        os.write(writing, b"whole")
    except BaseException as exc:
        os.write(writing, repr(exc).encode())
    finally:
        os._exit(0)
os.close(writing)
print(read_all(reading, PATIENCE))
os.waitpid(child, 0)
run.pass_time(150)
print(run.recorder.names)
assert registry.pending_flow("c1") == "flow" and registry.publish("t", 1) == 1
run.settle()
print(run.stats())
registry.close()
"""


@guarantee("G25")
@requires("fork")
def test_a_forked_child_has_an_empty_usable_registry(
    registry: Backend, stube_backend: Any, stube_options: Mapping[str, Any]
) -> None:
    """Fault: the child takes its delivery thread for alive, its lock stays held, or timers fire twice; or a registry
    that has needed no thread yet keeps what it holds."""
    printed = run_script(stube_backend, stube_options, _FORK)
    stats = Stats(accepted=2, delivered=2, subscriptions=1)
    assert printed == f"whole\n['of the parent']\n{stats}\n"


_FORK_WITH_CLOCK = """
readings = []

def clock():
    readings.append(os.getpid())
    return time.monotonic_ns()

run = Driver(make(clock=clock))
run.schedule(0)
run.settle()
child = os.fork()
if child == 0:
    try:
        run.schedule(3_600_000)
    finally:
        os._exit(0 if os.getpid() in readings else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
run.registry.close()
"""


@guarantee("G25", "G12")
@requires("fork", "own_clock")
def test_a_forked_child_reads_the_clock_of_its_parent(
    registry: Backend, stube_backend: Any, stube_options: Mapping[str, Any]
) -> None:
    """Fault: the registry is made anew in the child, without its options."""
    assert run_script(stube_backend, stube_options, _FORK_WITH_CLOCK) == "0\n"


_FORK_INSIDE = """
parent = os.getpid()
reading, writing = os.pipe()
run = Driver(make())
registry, virtual = run.registry, run.clock is not None
fresh = threading.Event()
children = []

def dispatch(cid, event):
    if os.getpid() != parent:
        os.write(writing, (event.name + ";").encode())
        fresh.set()
        return
    run.recorder(cid, event)
    if event.name != "fork":
        return
    child = os.fork()
    if child:
        children.append(child)
        return
    try:
        assert registry.stats().timers == 0 and registry.stats().queued == 0, registry.stats()
        assert registry.subscriptions() == {}
        registry.schedule_event(cid="child", instance_id="main", delay_ms=0, event="fresh")
        if not virtual:
            assert fresh.wait(PATIENCE), "the child's own timer did not fire"
    except BaseException as exc:
        os.write(writing, repr(exc).encode())
        os._exit(0)

registry.install_dispatch(dispatch)
registry.subscribe(cid="c2", instance_id="main", topic="t", event="said")
for name, cid in (("fork", "c1"), ("behind", "c1b"), ("behind", "c2")):
    registry.subscribe(cid=cid, instance_id="main", topic="fork", event=name)
with run.held("c1"):
    if CAUSE == "timer":
        run.schedule(0, "fork", cid="c1")
        run.schedule(0, "behind", cid="c1")
    else:
        registry.publish("fork", 0)
    run.schedule(0, "behind", cid="c2")
    for number in range(5):
        registry.publish("t", number)
    run.schedule(20, "later", cid="c2")
run.pass_time(20)
os.close(writing)
import select
# The child has finished when its pipe ends, or when it has written nothing for half a second.
print(read_all(reading, 0.5) if select.select([reading], [], [], PATIENCE)[0] else "nothing")
os.kill(children[0], signal.SIGKILL)
os.waitpid(children[0], 0)
print(run.recorder.names)
print(run.stats())
registry.close()
"""


_FORK_INSIDE_VIRTUAL = """
parent = os.getpid()
reading, writing = os.pipe()
registry = make()
children, seen = [], []

def dispatch(cid, event):
    if os.getpid() != parent:
        os.write(writing, (event.name + ";").encode())
        return
    seen.append(event.name)
    if event.name == "fork":
        child = os.fork()
        if child:
            children.append(child)
        else:
            registry.schedule_event(cid="child", instance_id="main", delay_ms=0, event="fresh")

registry.install_dispatch(dispatch)
registry.subscribe(cid="c2", instance_id="main", topic="t", event="said")
for name, cid in (("fork", "c1"), ("behind", "c1b"), ("behind", "c2")):
    registry.subscribe(cid=cid, instance_id="main", topic="fork", event=name)
if CAUSE == "timer":
    for name in ("fork", "behind"):
        registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event=name)
else:
    registry.publish("fork", 0)
registry.schedule_event(cid="c2", instance_id="main", delay_ms=0, event="behind")
for number in range(5):
    registry.publish("t", number)
registry.schedule_event(cid="c2", instance_id="main", delay_ms=20, event="later")
try:
    registry.advance(50)
    if os.getpid() != parent:
        registry.settle()
        assert registry.stats() == stube.Stats(accepted=1, delivered=1), registry.stats()
        os.write(writing, b"whole")
except BaseException as exc:
    if os.getpid() == parent:
        raise
    os.write(writing, repr(exc).encode())
if os.getpid() != parent:
    os._exit(0)
os.close(writing)
print(read_all(reading, PATIENCE))
os.waitpid(children[0], 0)
print(seen)
print(registry.stats())
registry.close()
"""


@guarantee("G25")
@costly
@requires("fork")
@pytest.mark.parametrize("cause", ["timer", "message"])
def test_a_child_forked_in_a_handler_delivers_no_event_of_its_parent(
    registry: Backend, stube_backend: Any, stube_options: Mapping[str, Any], cause: str
) -> None:
    """Case 27b. Fault: the forked copy of the delivery loop continues its batch, so every message is delivered twice.

    The handler of a timer forks, or the first of three subscribers that get one message.
    """
    virtual = "virtual_time" in registry.capabilities
    script = f"CAUSE = {cause!r}\n" + (_FORK_INSIDE_VIRTUAL if virtual else _FORK_INSIDE)
    child, names, stats = run_script(stube_backend, stube_options, script).splitlines()
    assert child == ("fresh;whole" if virtual else "fresh;")
    behind = 2 if cause == "timer" else 3
    assert sorted(ast.literal_eval(names)) == ["behind"] * behind + ["fork", "later"] + ["said"] * 5
    assert stats == str(Stats(accepted=7 + behind, delivered=7 + behind, subscriptions=4))


_FORK_AND_RETURN = """
parent = os.getpid()
reading, writing = os.pipe()
run = Driver(make())
registry, virtual = run.registry, run.clock is not None
children = []

def tell():
    try:
        assert run.registry.settle(PATIENCE), "does not settle"
        seen = []
        registry.install_dispatch(lambda cid, event: seen.append(event.name))
        stats = registry.stats()
        registry.schedule_event(cid="child", instance_id="main", delay_ms=0, event="fresh")
        assert registry.settle(PATIENCE), "does not settle after a timer of the child's own"
        assert seen == ["fresh"], seen
        wanted = stube.Stats(), stube.Stats(accepted=1, delivered=1)
        assert (stats, registry.stats()) == wanted, (stats, registry.stats())
        os.write(writing, b"whole")
    except BaseException as exc:
        os.write(writing, repr(exc).encode())
    os._exit(0)

def dispatch(cid, event):
    child = os.fork()
    if child:
        children.append(child)
        return
    returned = threading.Event()
    threading.Thread(target=lambda: (time.sleep(0.1), tell()), daemon=True).start()
    if RAISES:
        raise LookupError("in both processes")

registry.install_dispatch(dispatch)
import logging
logging.getLogger("stube").setLevel(logging.CRITICAL + 1)
registry.schedule_event(cid="c1", instance_id="main", delay_ms=0, event="fork")
registry.settle(PATIENCE)
if os.getpid() != parent:
    tell()
os.close(writing)
print(read_all(reading, PATIENCE))
os.waitpid(children[0], 0)
print(registry.stats())
registry.close()
"""


@guarantee("G25")
@requires("fork")
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
def test_a_child_does_not_count_the_delivery_that_forked_it(
    registry: Backend, stube_backend: Any, stube_options: Mapping[str, Any], raises: bool
) -> None:
    """Fault: when the handler that forked returns in the child, the child counts the delivery of its parent."""
    printed = run_script(stube_backend, stube_options, f"RAISES = {raises}\n{_FORK_AND_RETURN}")
    assert printed == f"whole\n{Stats(accepted=1, delivered=1)}\n"


@guarantee("G25", "G23")
@costly
@requires("fork")
def test_registries_made_before_a_server_forks_work_in_its_workers(
    registry: Backend, stube_backend: Any, stube_options: Mapping[str, Any]
) -> None:
    """Fault: only a registry that was used before the fork works in the child, or only the first child works."""
    printed = run_script(
        stube_backend,
        stube_options,
        """
unused, used = Driver(make()), Driver(make())
used.schedule(0)
used.settle()
for worker in range(3):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for run in (unused, used):
                run.recorder.clear()
                run.schedule(1, ("tick", worker))
                run.pass_time(1)
                assert run.recorder.payloads == [worker]
                grandchild = os.fork()
                if grandchild == 0:
                    run.recorder.clear()
                    run.schedule(1, "grand")
                    run.pass_time(1)
                    os.write(writing, "".join(run.recorder.names).encode())
                    os._exit(0)
                os.waitpid(grandchild, 0)
                run.registry.close()
            os.write(writing, b" whole")
        except BaseException as exc:
            os.write(writing, repr(exc).encode())
        finally:
            os._exit(0)
    os.close(writing)
    print(read_all(reading, PATIENCE))
    os.waitpid(child, 0)
for run in (unused, used):
    run.schedule(0, "parent")
    run.settle()
    print(run.recorder.names)
    run.registry.close()
""",
    )
    assert printed.splitlines() == ["grandgrand whole"] * 3 + ["['parent']", "['tick', 'parent']"]


@guarantee("G25")
@costly
@requires("fork")
def test_a_fork_under_load_leaves_no_lock_held_in_the_child(
    registry: Backend, stube_backend: Any, stube_options: Mapping[str, Any]
) -> None:
    """Fault: the fork copies a lock that another thread holds, and the child waits endlessly for that thread."""
    printed = run_script(
        stube_backend,
        stube_options,
        """
registry = make()
registry.install_dispatch(lambda cid, event: None)
stop = threading.Event()

def work(thread):
    number = 0
    while not stop.is_set():
        number += 1
        registry.schedule_event(cid=f"c{thread}", instance_id="i", delay_ms=number % 2, event="e")
        registry.subscribe(cid=f"c{thread}", instance_id="i", topic="t", event="e")
        registry.publish("t", number)
        registry.stats()
        if number % 50 == 0:
            registry.cancel_timers(f"c{thread}")
            registry.remove_subscriptions_for_cid(f"c{thread}")

threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(3)]
for thread in threads:
    thread.start()
for round_number in range(15):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            assert registry.stats() == stube.Stats()
            arrived = threading.Event()
            registry.install_dispatch(lambda cid, event: arrived.set())
            registry.schedule_event(cid="child", instance_id="i", delay_ms=0, event="e")
            assert registry.settle(PATIENCE) and arrived.is_set()
            os.write(writing, b"w")
        except BaseException as exc:
            os.write(writing, repr(exc).encode())
        finally:
            os._exit(0)
    os.close(writing)
    data = read_all(reading, PATIENCE)
    if data != "w":
        print(round_number, data or "a deadlock in the child")
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
stop.set()
for thread in threads:
    thread.join(PATIENCE)
registry.close()
print("done")
""",
    )
    assert printed == "done\n"
