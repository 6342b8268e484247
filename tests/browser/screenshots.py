"""Takes the pictures of the demo in `docs/`: `python -m tests.browser.screenshots`. Look at each one afterwards."""

from __future__ import annotations

import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.browser.stage import Stage, chromium, clock, hears, name_in, row, say, staged

DOCS = Path(__file__).parents[2] / "docs"
MOST_BYTES = 200_000
WIDE = {"width": 1280, "height": 800}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 780}, "is_mobile": True, "device_scale_factor": 2}


def save(page: Any, name: str, **options: Any) -> None:
    """Write one picture, and print its name and size."""
    page.evaluate("document.fonts.ready")
    data: bytes = page.screenshot(**options)
    if len(data) > MOST_BYTES:
        from PIL import Image  # imported only when needed; the extra 'report' installs it

        smaller = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("P", palette=Image.Palette.ADAPTIVE).save(smaller, "PNG", optimize=True)
        data = smaller.getvalue()
    if len(data) > MOST_BYTES:
        raise SystemExit(f"{name} has {len(data)} bytes, more than {MOST_BYTES}.")
    (DOCS / name).write_bytes(data)
    print(f"{name}: {len(data)} bytes")


def fresh(stage: Stage) -> None:
    """One tab, just opened."""
    page = stage.tab(viewport=WIDE)
    clock(page, 5)
    save(page, "demo-fresh.png")


def chat(stage: Stage) -> None:
    """A few people talk: light, dark and on a phone. Then one of them closes the tab, and its row falls to 0."""
    page, dark = stage.tab(viewport=WIDE), stage.tab(viewport=WIDE, color_scheme="dark")
    phone, leaving = stage.tab(**PHONE), stage.tab()
    for each in (page, dark, phone, leaving):
        clock(each, 1)
    say(dark, "Is anybody else here?")
    hears(page, "Is anybody else here?")
    say(page, "Yes, two tabs over.")
    hears(phone, "Yes, two tabs over.")
    say(phone, "Me too, from the phone. When you close a tab, the registry forgets it immediately.")
    hears(dark, "Me too, from the phone.")
    say(leaving, "<b>Watch my row then.</b>")
    hears(page, "Watch my row then.")
    clock(page, 12)
    for each in (page, dark):
        each.mouse.move(0, 0)
    save(page, "demo.png")
    save(dark, "demo-dark.png")
    save(phone, "demo-phone.png", full_page=True)
    name = name_in(leaving)
    leaving.close(run_before_unload=True)
    # In the middle of the fall: the timers are gone, and the other figures are still there.
    page.wait_for_function(
        "row => row.dataset.state === 'gone' && row.cells[1].textContent === '0'",
        arg=row(page, name).element_handle(),
        polling=20,
    )
    save(page, "demo-closed.png")


def frozen(stage: Stage) -> None:
    """One handler is frozen, and the conversations on its thread stall. If there are none, freeze another handler."""
    pages = [stage.tab(viewport=WIDE) for _ in range(6)]
    for page in pages:
        clock(page, 3)
    for page, other in pairwise(pages):
        page.get_by_role("button", name="Freeze my handler").click()
        page.wait_for_timeout(2500)
        say(other, "Does everybody hear me?")
        page.wait_for_timeout(1500)
        if "Stalled with it" in page.locator("#stalls").inner_text():
            page.mouse.move(0, 0)
            save(page, "demo-frozen.png")
            return
        page.get_by_role("button", name="Unfreeze it").click()
    raise SystemExit("No conversation stalled in any attempt. Run it again.")


def virtual(stage: Stage) -> None:
    """Half an hour has passed at the press of a button."""
    page, other = stage.tab(viewport=WIDE), stage.tab()
    for each in (page, other):
        each.get_by_text("connected", exact=True).wait_for()
    say(other, "Shall we wait for half an hour?")
    hears(page, "Shall we wait for half an hour?")
    page.get_by_role("button", name="thirty minutes").click()
    page.get_by_text("You have said nothing for 30 minutes.").wait_for()
    page.get_by_text("Time stands still at 30:00.").wait_for()
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    save(page, "demo-virtual.png")


PICTURES: list[tuple[Callable[[Stage], None], str]] = [
    (fresh, "memory"),
    (chat, "memory"),
    (frozen, "sharded://?shards=4"),
    (virtual, "virtual"),
]


def main() -> None:
    """Take all pictures."""
    with chromium() as browser:
        for take, spec in PICTURES:
            with staged(browser, spec) as stage:
                take(stage)


if __name__ == "__main__":
    main()
