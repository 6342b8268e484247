"""The demo in a real browser: the promises of a page to users who look, listen with a screen reader, or type."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from stube.demo._panel import name_of
from tests.browser.stage import Stage, clock, hears, name_in, row, say

Staging = Callable[..., Stage]


# The life of a conversation, on every backend


def test_first_stream_boots_and_a_reload_is_a_new_conversation(stage: Staging, spec: str) -> None:
    """Fault: the baton is not taken, or the reloaded page returns to the conversation that it has left."""
    used = stage(spec)
    page = used.tab()
    page.get_by_text("connected", exact=True).wait_for()
    first = name_in(page)
    clock(page, 1)
    assert used.registry.stats().pending_flows == 0
    page.reload(wait_until="domcontentloaded")
    clock(page, 1)
    assert name_in(page) != first
    used.until(lambda: [name_of(cid) for cid in used.registry.inspect()] == [name_in(page)], page)


def test_chat_goes_both_ways_and_shows_markup_as_text(stage: Staging, spec: str) -> None:
    used = stage(spec)
    here, there = used.tab(), used.tab()
    say(here, "Is anybody there?")
    hears(there, "Is anybody there?")
    say(there, "<b>Yes</b> & \u2603")
    hears(here, "<b>Yes</b> & \u2603")
    assert there.locator(".log li:not(.mine) .meta").inner_text().startswith(name_in(here))
    assert here.locator(".log li.mine .meta").inner_text().startswith("you")
    here.get_by_role("list", name="Who is here").get_by_text(name_in(there)).wait_for()


def test_cut_stream_resumes_where_the_clock_is(stage: Staging, spec: str) -> None:
    """Fault: a page whose network fails for a moment loses its conversation or the messages of that time, or its clock
    starts again."""
    used = stage(spec, grace_ms=60_000)
    line = used.line()
    page, other = used.tab(url=line.url), used.tab()
    clock(page, 1)
    name = name_in(page)
    line.cut()
    page.get_by_text("connection lost, trying again").wait_for()
    row(other, name).get_by_text("stream cut").wait_for()
    say(other, "can you hear me?")
    hears(other, "can you hear me?")
    line.restore()
    page.get_by_text("Connected again.").wait_for()
    hears(page, "can you hear me?")
    clock(page, 3)
    assert name_in(page) == name
    say(other, "welcome back")
    hears(page, "welcome back")
    # Each once, and nothing else.
    assert page.locator(".log li > div").all_inner_texts() == ["can you hear me?", "welcome back"]
    row(other, name).get_by_text("live").wait_for()


def test_stream_that_does_not_come_back_ends(stage: Staging, spec: str) -> None:
    used = stage(spec, grace_ms=200)
    line = used.line()
    page, other = used.tab(url=line.url), used.tab()
    clock(page, 1)
    line.cut()
    used.until(lambda: len(used.registry.inspect()) == 1, other)
    line.restore()
    page.get_by_text("This conversation has ended: it was away for too long.").wait_for()
    assert page.get_by_role("button", name="Send").is_disabled()
    assert page.evaluate("document.activeElement.id") == "reload"


def test_page_that_missed_too_much_says_so(stage: Staging) -> None:
    """Fault: a page does not say that its messages are incomplete."""
    used = stage("memory", grace_ms=60_000)
    line = used.line()
    page, other = used.tab(url=line.url), used.tab()
    clock(page, 1)
    line.cut()
    row(other, name_in(page)).get_by_text("stream cut").wait_for()
    for number in range(300):
        used.registry.publish("room", {"from": "another", "text": f"{number}."})
    line.restore()
    page.get_by_text(re.compile(r"Too much happened meanwhile: \d+ events never reached this page\.")).wait_for()
    hears(page, "299.")
    page.get_by_text("connected", exact=True).wait_for()


def test_page_says_that_the_server_has_stopped(stage: Staging) -> None:
    """Fault: the page behaves as if it were connected, or connects again and again to a server that wants to stop."""
    used = stage("memory")
    page = used.tab()
    clock(page, 1)
    used.demo.host.close_streams()
    page.get_by_text("The server has been stopped, and with it this conversation.").wait_for()
    assert page.get_by_role("button", name="Send").is_disabled()


def test_closed_tab_falls_to_nothing(stage: Staging, spec: str) -> None:
    """Fault: something of a closed tab stays in the registry, or the inspector does not show how it disappears."""
    used = stage(spec, grace_ms=3_600_000)
    stays, goes = used.tab(), used.tab()
    name = name_in(goes)
    falling = row(stays, name)
    falling.get_by_text("live").wait_for()
    falling.get_by_text("tick").wait_for()
    goes.close(run_before_unload=True)
    falling.get_by_text("gone").wait_for()
    # Timers, topics, queued, running, baton: they fall to 0 one after the other, and then the row goes.
    stays.wait_for_function(
        "row => [...row.cells].slice(1).map(cell => cell.textContent).join() === '0,0,0,0,0'",
        arg=falling.element_handle(),
    )
    falling.wait_for(state="detached")
    assert [name_of(cid) for cid in used.registry.inspect()] == [name_in(stays)]
    stays.close(run_before_unload=True)
    used.until(used.is_empty, used.context().new_page())
    assert used.registry.stats().balanced


def test_a_hundred_conversations_work_at_the_same_time(stage: Staging, spec: str) -> None:
    """Fault: with a hundred tabs a stream does not connect, a message is lost, or something of a closed tab stays.

    Twenty browsers have five tabs each, because a browser keeps at most six connections to one server, and each stream
    needs one. Only the first tab draws its inspector: Playwright tells every tab that it is in front, and a hundred
    drawing tabs would overload a small machine.
    """
    used = stage(spec)
    pages: list[Any] = []
    for _ in range(20):
        context = used.context(reduced_motion="reduce")
        if pages:
            context.add_init_script("Object.defineProperty(document, 'hidden', {value: true})")
        pages += [used.tab(context) for _ in range(5)]
    used.until(lambda: len(used.registry.subscriptions().get("room", ())) == 100, pages[0])
    assert used.registry.stats().pending_flows == 0
    pages[0].get_by_text("and 60 more").wait_for()
    say(pages[0], "all of you")
    say(pages[99], "and you")
    for page in pages:
        hears(page, "all of you")
        hears(page, "and you")
        clock(page, 1)
    for page in pages[:0:-1]:
        page.close(run_before_unload=True)
    used.until(lambda: len(used.registry.inspect()) == 1, pages[0])
    pages[0].close(run_before_unload=True)
    used.until(used.is_empty, used.context().new_page())
    stats = used.registry.stats()
    assert (stats.balanced, stats.failed, stats.dropped) == (True, 0, 0)


# Freezing a handler, advancing a clock


def test_frozen_handler_shows_which_others_stall(stage: Staging, spec: str) -> None:
    """Fault: the stalled conversations are not those on the frozen handler's thread: all of them, those of a shard, or,
    on an event loop, none."""
    used = stage(spec, freeze_ms=60_000)
    frozen, *others = (used.tab(used.context()) for _ in range(6))
    for page in (frozen, *others):
        clock(page, 1)
    frozen.get_by_role("button", name="Freeze my handler").click()
    row(others[0], name_in(frozen)).get_by_text("handler frozen").wait_for()
    say(frozen, "who hears this?")
    # Three ticks of a second each are long enough to see one.
    before = [page.locator("#clock").inner_text() for page in others]
    frozen.wait_for_timeout(3000)
    moving = [page for page, text in zip(others, before, strict=True) if page.locator("#clock").inner_text() != text]
    stalled = [page for page in others if page not in moving]
    if spec == "memory":
        assert moving == []
    if spec == "asyncio":
        assert stalled == []
    for page in moving:
        hears(page, "who hears this?")
    for page in stalled:
        row(frozen, name_in(page)).get_by_text("stalled").wait_for()
        assert row(frozen, name_in(page)).locator("[data-label=queued]").inner_text() == "1"
    wanted = {0: "Nobody stalls with it.", 1: "Stalled with it: 1 conversation."}
    frozen.get_by_text(wanted.get(len(stalled), f"Stalled with it: {len(stalled)} conversations.")).wait_for()
    frozen.get_by_role("button", name="Unfreeze it").click()
    for page in (frozen, *others):
        hears(page, "who hears this?")
    frozen.get_by_text("No handler is frozen, nobody stalls.").wait_for()
    assert not frozen.get_by_role("button", name="thirty minutes").is_visible()


def test_thirty_virtual_minutes_pass_at_the_press_of_a_button(stage: Staging) -> None:
    used = stage("virtual")
    page, other = used.tab(), used.tab()
    line = used.line()
    lost = used.tab(url=line.url)
    for each in (page, other, lost):
        each.get_by_text("connected", exact=True).wait_for()
    say(other, "messages need no time")
    hears(page, "messages need no time")
    line.cut()
    row(page, name_in(lost)).get_by_text("stream cut").wait_for()
    row(page, name_in(lost)).get_by_text("5.0 s").wait_for()
    assert not page.get_by_role("button", name="Freeze my handler").is_visible()
    page.get_by_role("button", name="one second").click()
    page.get_by_text("Time stands still at 1.0 s.").wait_for()
    row(page, name_in(lost)).get_by_text("4.0 s").wait_for()
    page.get_by_role("button", name="thirty minutes").click()
    for each in (page, other):
        each.locator("#clock", has_text="30:01").wait_for()
        each.get_by_text("You have said nothing for 30 minutes.").wait_for()
    page.get_by_text("Time stands still at 30:01.").wait_for()
    row(page, name_in(lost)).wait_for(state="detached")  # its grace period is over, in no real time
    page.get_by_role("img", name="Lateness of ticks, the last minute: 0.0 ms now, max 0.0 ms").wait_for()
    page.get_by_role("img", name="Deliveries per second, the last minute: 2 now, max 4").wait_for()


# The inspector


def test_inspector_shows_the_ledger_and_no_cid(stage: Staging) -> None:
    used = stage("memory")
    page, other = used.tab(), used.tab()
    clock(page, 2)
    ledger = page.get_by_role("group", name="Every accepted delivery has one fate")
    page.get_by_text("\u2713 balanced").wait_for()
    signs = "".join(ledger.locator(".sign").all_inner_texts())
    labels = ledger.locator(".label").all_inner_texts()
    assert (signs, labels) == (
        "=++++++",
        ["accepted", "delivered", "failed", "cancelled", "dropped", "timers", "queued", "running"],
    )
    accepted, *fates = (int(text.replace(",", "")) for text in ledger.locator(".value").all_inner_texts())
    assert accepted == sum(fates) > 0
    cid = other.evaluate("document.body.dataset.cid")
    row(page, name_in(other)).wait_for()
    assert cid not in page.content()
    page.get_by_role("img", name=re.compile(r"Deliveries per second, the last minute: \d+ now")).wait_for()
    page.get_by_role("img", name=re.compile(r"Lateness of ticks, the last minute: [\d.]+ ms now")).wait_for()


def test_time_left_is_counted_down_in_between(stage: Staging) -> None:
    """Fault: the time left jumps with each snapshot, or runs up."""
    used = stage("memory", tick_ms=60_000)
    page = used.tab()
    left = row(page, name_in(page)).locator(".timer .number").first
    left.wait_for()
    seen = []
    for _ in range(20):
        seen.append(left.inner_text())
        page.wait_for_timeout(100)
    values = [60.0 if text == "1:00" else float(text.removesuffix(" s")) for text in seen]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) > 5
    assert 1 < values[0] - values[-1] < 10


# Users who look, listen with a screen reader, or type


def test_keyboard_alone_is_enough(stage: Staging) -> None:
    used = stage("memory", freeze_ms=60_000)
    page = used.tab()
    clock(page, 1)
    stops = []
    for _ in range(5):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        # The focus must be visible by an outline, and not only by a colour.
        outline = page.evaluate("getComputedStyle(document.activeElement).outline")
        assert "3px" in outline
    assert stops == ["log", "text", "Send", "freeze", "parts"]
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Space")
    page.get_by_role("button", name="Unfreeze it", pressed=True).wait_for()
    page.get_by_text("Your handler stands still, for 60 seconds at most.").wait_for()
    page.keyboard.press("Enter")
    page.get_by_text("Your handler goes on").wait_for()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.type("typed")
    page.keyboard.press("Enter")
    hears(page, "typed")
    assert page.evaluate("[document.activeElement.id, document.activeElement.value]") == ["text", ""]


def test_screen_reader_finds_all_parts_and_hears_only_the_chat(stage: Staging) -> None:
    used = stage("memory")
    page = used.tab()
    clock(page, 1)
    row(page, name_in(page)).wait_for()
    name = name_in(page)
    tree = page.locator("body").aria_snapshot()
    for line in (
        f"- main {_quoted(name)}:",
        f"- heading {_quoted(name)} [level=1]",
        '- timer "Clock of this conversation":',
        '- heading "Who is here" [level=2]',
        '- list "Who is here":',
        '- log "Chat":',
        '- textbox "Message to the room"',
        '- button "Send"',
        '- complementary "Inspector":',
        '- button "Freeze my handler"',
        '- group "State of the registry":',
        '- region "Every accepted delivery has one fate":',
        '- table "Conversations":',
        '- columnheader "Timers, time left"',
        f'- rowheader "{name} you, live"',
    ):
        assert line in tree, f"{line!r} is not in\n{tree}"
    # Only the chat is announced without being asked for, because a listener must not hear every tick.
    live = page.locator("[aria-live]:not([aria-live=off]), [role=status], [role=alert]")
    assert live.evaluate_all("nodes => nodes.map(node => node.id)") == ["log"]
    # And the chat is announced only when something was said, although the inspector changes all the time.
    page.evaluate(
        "() => { window.spoken = 0; new MutationObserver(() => window.spoken++)"
        ".observe(document.getElementById('log'), {childList: true, subtree: true, characterData: true}) }"
    )
    clock(page, 3)
    assert page.evaluate("window.spoken") == 0


def _quoted(name: str) -> str:
    return f'"{name}"'


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_screen(stage: Staging, width: int) -> None:
    used = stage("memory")
    for _ in range(3):
        used.tab()
    page = used.tab(viewport={"width": width, "height": 780}, is_mobile=width < 500, has_touch=width < 500)
    say(page, "a-word-without-an-end-" * 20)
    page.locator(".log li.mine").wait_for()
    row(page, name_in(page)).wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    main, aside = page.locator("main").bounding_box(), page.locator("aside").bounding_box()
    one_column = aside["y"] >= main["y"] + main["height"]
    assert one_column == (width < 960)
    wider = "nodes => nodes.filter(node => node.scrollWidth > node.clientWidth + 1).map(node => node.outerHTML)"
    assert page.locator("main, aside, .log, .parts, .ledger, table, td").evaluate_all(wider) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(stage: Staging, scheme: str) -> None:
    """Fault: a colour has no counterpart in the other scheme. The bound is that of WCAG AA for small text."""
    used = stage("memory", freeze_ms=60_000)
    page, other = used.tab(color_scheme=scheme), used.tab()
    say(page, "mine")
    say(other, "not mine")
    hears(page, "not mine")
    page.get_by_role("button", name="Freeze my handler").click()
    row(page, name_in(other)).get_by_text("stalled").wait_for()
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (_luminance(ground) > 0.5) == (scheme == "light")
    for text, colour, behind in page.evaluate(COLOURS):
        assert _contrast(colour, behind) >= 4.5, (text, colour, behind)
    page.get_by_role("button", name="Unfreeze it").click()


# Each text with its colour, and the nearest colour behind it that is not transparent.
COLOURS = """() => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, inside = node.parentElement;
    if (!node.textContent.trim() || inside.closest('script, style, [hidden]')) continue;
    let behind = inside;
    while (getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
    found.push([node.textContent.trim(), getComputedStyle(inside).color, getComputedStyle(behind).backgroundColor]);
  }
  return found;
}"""


def _luminance(colour: str) -> float:
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_reduced_motion_stops_all_animations(stage: Staging) -> None:
    used = stage("memory")
    lively, calm = used.tab(), used.tab(reduced_motion="reduce")
    durations = (
        "document.getAnimations().length + [...document.querySelectorAll('*')].filter("
        "node => parseFloat(getComputedStyle(node).transitionDuration) > 0).length"
    )
    for page in (lively, calm):
        row(page, name_in(page)).wait_for()
    assert lively.evaluate(durations) > 0
    assert calm.evaluate(durations) == 0
    assert calm.locator(".bar").first.is_hidden()
