"""A report as one HTML page without scripts or other files, light and dark, readable on a phone."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Final

from stube.testing._conformance.outcomes import Story
from stube.testing._conformance.report import (
    BROKEN,
    HELD,
    HELD_SO_FAR,
    NOT_PROMISED,
    UNPROVEN,
    GuaranteeReport,
    Report,
    Tested,
    summary,
)
from stube.testing._contract.guarantees import GUARANTEES

__all__ = ["page_of", "write_page"]

# Verdicts differ by sign and word, not only by colour.
_SIGNS: Final = {HELD: "\u2713", HELD_SO_FAR: "\u2713", NOT_PROMISED: "\u2013", BROKEN: "\u2717", UNPROVEN: "?"}
_CLASSES: Final = {HELD: "held", HELD_SO_FAR: "held", NOT_PROMISED: "absent", BROKEN: "broken", UNPROVEN: "unproven"}

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2024; --dim: #5b6470; --page: #fff; --line: #d9dee4; --sheet: #f4f6f8;
  --held: #14663a; --broken: #b3161f; --unproven: #8a5300; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ed; --dim: #9aa4b1; --page: #14171b; --line: #333a43; --sheet: #1e2329;
    --held: #6fd39b; --broken: #ff8a87; --unproven: #f0b866; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .25rem 0; }
.sum { font-size: 1.1rem; border-left: .3rem solid; padding-left: .75rem; margin: 1rem 0; overflow-wrap: anywhere; }
.sum.held { border-color: var(--held); } .sum.broken { border-color: var(--broken); }
.dim { color: var(--dim); font-size: .9rem; }
table { border-collapse: collapse; width: 100%; margin-top: 1rem; }
caption { text-align: left; color: var(--dim); font-size: .9rem; padding-bottom: .5rem; }
th, td { text-align: left; vertical-align: top; padding: .5rem .75rem .5rem 0; border-top: 1px solid var(--line); }
thead th { border-top: 0; font-size: .85rem; color: var(--dim); font-weight: 600; }
tbody th { font-weight: 400; overflow-wrap: anywhere; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
a { color: inherit; }
.verdict { white-space: nowrap; font-weight: 600; }
.verdict.held { color: var(--held); } .verdict.broken { color: var(--broken); }
.verdict.unproven { color: var(--unproven); } .verdict.absent { color: var(--dim); }
details { margin-top: .4rem; } summary { cursor: pointer; }
.story { background: var(--sheet); border-left: .3rem solid var(--broken); padding: .6rem .8rem; margin-top: .4rem; }
.under td { border-top: 0; padding: 0 0 .75rem; }
pre { margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere; font: .85rem/1.4 ui-monospace, monospace; }
code { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  th, td { padding-right: .45rem; }
  thead th { font-size: .72rem; }
  .verdict { white-space: normal; }
}
"""


def page_of(report: Report) -> str:
    """Return the page. All texts that may come from a backend are escaped."""
    title = f"{report['backend']}: what it holds of stube's guarantees"
    told: dict[str, str] = {}  # from a test to the guarantee with its story: a random program may break many of them
    rows = "\n".join(_row(number, one, told) for number, one in report["guarantees"].items())
    absent = ", ".join(report["not_promised"]) or "none"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
<p class="dim">stube {escape(report["stube"])}, Python {escape(report["python"])}, {escape(report["platform"])}, \
<time datetime="{escape(report["date"])}">{escape(report["date"][:16].replace("T", " "))} UTC</time></p>
<p class="sum {"held" if report["ok"] else "broken"}">{escape(summary(report))}</p>
<p class="dim">Capabilities that it promises: {escape(", ".join(report["capabilities"]) or "none")}.</p>
<p class="dim">Not promised: {escape(absent)}.</p>
<table>
<caption>The guarantees, each with its verdict and the number of its tests</caption>
<thead><tr><th scope="col">Guarantee</th><th scope="col">Verdict</th><th scope="col" class="n">Tested</th>\
<th scope="col" class="n">Failed</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
<h2>Every test</h2>
<details>
<summary>{len(report["tests"])} tests</summary>
<table>
<caption>The outcome of each test, in the order in which they ran</caption>
<thead><tr><th scope="col">Test</th><th scope="col">Outcome</th><th scope="col" class="n">Seconds</th></tr></thead>
<tbody>
{"".join(map(_test, report["tests"]))}</tbody>
</table>
</details>
</main>
</body>
</html>
"""


def write_page(path: Path, report: Report) -> None:
    """Write the page as UTF-8.

    Raises:
        OSError: the file cannot be written.
    """
    path.write_text(page_of(report), encoding="utf-8", errors="backslashreplace")


def _row(number: str, one: GuaranteeReport, told: dict[str, str]) -> str:
    verdict = one["verdict"]
    under = f'<p class="dim">{_prose(GUARANTEES[number].sentence)}</p>'
    if one["missing"]:
        under += f'<p class="dim">The tests that did not run need {escape(", ".join(one["missing"]))}.</p>'
    under += "".join(f'<p class="dim">Not tested: {_prose(clause)}</p>' for clause in one["untested"])
    if one["story"] is not None:
        first = told.setdefault(one["story"]["test"], number)
        same = f'<p>The same test as under <a href="#{first}">{first}</a>.</p>'
        under += _story(one["story"]) if first == number else same
    tested = f"{one['passed'] + one['failed']} of {one['total']}"
    counts = "".join(f'<td class="n">{cell}</td>' for cell in (tested, one["failed"]))
    return f"""<tr id="{number}"><th scope="row"><strong>{number}</strong> {escape(one["title"])}</th>\
<td class="verdict {_CLASSES[verdict]}"><span aria-hidden="true">{_SIGNS[verdict]}</span> {verdict}</td>{counts}</tr>
<tr class="under"><td colspan="4">{under}</td></tr>"""


def _story(story: Story) -> str:
    fault = f"<p>The fault may be: {_prose(story['fault'])}</p>" if story["fault"] else ""
    return f"""<details open><summary>How it broke</summary><div class="story"><p>{escape(story["promise"])}.</p>\
{fault}<pre>{escape(story["finding"])}</pre><p class="dim">at <code>{escape(story["where"])}</code>, \
<code>{escape(story["test"])}</code></p></div></details>"""


def _test(test: Tested) -> str:
    return (
        f'<tr><th scope="row"><code>{escape(test["name"])}</code> '
        f'<span class="dim">{escape(", ".join(test["guarantees"]))}</span></th>'
        f'<td>{escape(test["outcome"])}</td><td class="n">{test["seconds"]:.2f}</td></tr>\n'
    )


def _prose(text: str) -> str:
    """Return the text as HTML. Of Markdown our sentences use only the backtick."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
