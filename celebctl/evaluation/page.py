"""Everything on one HTML page without outside resources: figures, bars, worst cases, galleries."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .charts import Series, bars, legend, style
from .estimates import Estimate
from .marks import Mark, stated
from .metrics import Figures
from .record import Record

#: Figures of the table: key, heading, digits, what a reader should know.
COLUMNS: tuple[tuple[str, str, int, str], ...] = (
    ("likeness", "likeness", 3, "share of the way from a stranger to a true picture of the person"),
    ("identity", "identity", 3, "cosine of the judge; a face not found counts as 0"),
    ("identity_found", "where found", 3, "the same over pictures with a face"),
    ("detected", "face found", 3, "share of pictures with a face"),
    ("fidelity", "prompt", 3, "how much of the prompt is in the picture"),
    ("assigned", "assigned", 3, "two people: both faces can be told to be who was named"),
    ("sides", "sides", 3, "two people: and stand where they were named"),
    ("bleeding", "bleeding", 3, "two people: how much a face takes from the other one; 0 is none"),
    ("pose", "pose °", 1, "how much heads turn and tilt"),
    ("expression", "expressions", 2, "chance that two pictures show different expressions"),
    ("seconds", "s each", 1, "seconds of learning per person"),
    ("bytes", "bytes", 0, "what is kept of a person"),
)
_GALLERY, _WORST = 9, 12  # pictures per person at first sight; worst cases shown
_COMPARED = 6  # people shown side by side

_CSS = """
* { box-sizing: border-box; }
:root { color-scheme: light dark;
  --paper: #fbfaf7; --card: #ffffff; --ink: #23211e; --faint: #78736b; --rule: #e4dfd6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #171614; --card: #211f1c; --ink: #ece7df; --faint: #9d968b; --rule: #37332e; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 80px; }
h1 { font-size: 27px; margin: 0; letter-spacing: -.01em; } h2 { font-size: 19px; margin: 44px 0 12px; }
h3 { font-size: 15px; margin: 0 0 8px; } .sub, figcaption, .note { color: var(--faint); } .sub { margin: 4px 0 24px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px; }
.tile b { display: block; font-size: 27px; font-weight: 600; line-height: 1.2; font-variant-numeric: tabular-nums; }
.tile span { color: var(--faint); font-size: 13px; display: block; }
.wide { overflow-x: auto; padding: 8px 6px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 6px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; font-size: 12px; color: var(--faint); }
tr:last-child td { border: 0; }
td small { color: var(--faint); display: block; font-size: 11px; line-height: 1.1; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(380px, 1fr)); gap: 14px; }
svg { width: 100%; max-width: 760px; height: auto; display: block; }
svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
svg .tick { fill: var(--faint); font-size: 12px; } svg .value { font-size: 12px; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .whisker { stroke: var(--ink); stroke-width: 1.4; opacity: .75; }
.legend { margin: 0 0 8px; display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 7px; }
.person { display: grid; grid-template-columns: 112px 1fr; gap: 16px; margin-bottom: 12px; align-items: start; }
.person > div:first-child { font-size: 13px; } .person b { display: block; margin-top: 4px; overflow-wrap: anywhere; }
.strip + h3 { margin-top: 14px; }
.how td { white-space: normal; } .how td:last-child { text-align: left; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(98px, 1fr)); gap: 10px 8px; }
figure { margin: 0; } figure img, .person > div > img, .worst img { width: 100%; border-radius: 6px; display: block; }
figcaption { font-size: 11.5px; line-height: 1.3; margin-top: 3px; } figcaption b { color: var(--ink); }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--faint); font-size: 13px; }
details .strip { margin-top: 10px; }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(226px, 1fr)); gap: 12px; }
.worst .card { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; padding: 10px; align-content: start; }
.worst p { grid-column: 1 / -1; margin: 2px 0 0; font-size: 12.5px; line-height: 1.35; } dt { font-weight: 600; }
dd { margin: 0 0 6px; color: var(--faint); }
"""


@dataclass(frozen=True)
class Group:
    """A cast's figures and the records they were made of."""

    figures: Figures
    records: Sequence[Record]


def write_page(title: str, about: str, groups: Sequence[Group], settings: Mapping[str, str]) -> str:
    """The page. The first group with photos is what was asked for; the others are references."""
    main = next((group for group in groups if any(record.photo for record in group.records)), groups[-1])
    parts = [
        tiles(main, groups),
        f"<h2>Figures</h2>{table([group.figures for group in groups])}",
        "<p class='note'>± is the 95 % confidence interval over people. One person alone: reconstruction, action and "
        "expression prompts.</p>",
        f"<h2>By kind of prompt</h2>{category_bars([group.figures for group in groups])}",
        f"<h2>Worst cases</h2>{worst(main)}",
        *_galleries(main, groups),
        f"<h2>How this was measured</h2>{_how(settings)}",
    ]
    return plain_page(title, about, "".join(parts))


def plain_page(title: str, about: str, body: str) -> str:
    """A page in the house's dress around HTML of ours."""
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style()}{_CSS}</style></head>"
    )
    top = f"<h1>{escape(title)}</h1><p class='sub'>{escape(about)}</p>"
    return f"{head}<body><main>{top}{body}</main></body></html>\n"


def _others(main: Group, groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group is not main]


def _galleries(main: Group, groups: Sequence[Group]) -> list[str]:
    """Everybody of one or two casts; of more casts the same people side by side."""
    if len(groups) > 2:
        return [f"<h2>Side by side</h2>{side_by_side(groups)}"]
    ordered = [main, *_others(main, groups)]
    return [f"<h2>{escape(_capital(group.figures.title))}</h2>{gallery(group)}" for group in ordered]


def tiles(main: Group, groups: Sequence[Group]) -> str:
    """The figures to look at first, with the reference's below."""
    first = "likeness" if main.figures.summary.get("likeness") else "identity"
    names = {first: first, "fidelity": "prompt", "assigned": "two people told apart", "detected": "face found"}
    cells: list[str] = []
    for key, said in names.items():
        value = main.figures.summary.get(key)
        if value is None:
            continue
        others = [
            (other.mean, f"{escape(group.figures.title)} {other.mean:.3f}")
            for group in _others(main, groups)
            if (other := group.figures.summary.get(key)) is not None
        ]
        if len(others) > 2:  # the best of them; the table has the rest
            others = sorted(others, reverse=True)[:2]
        low = f"± {value.half:.3f}" if value.count > 1 else "one person"
        cells.append(
            f'<div class="tile"><span>{escape(said)}</span><b>{value.mean:.3f}</b>'
            f"<span>{low}{''.join(f'<br>{other}' for _, other in others)}</span></div>"
        )
    return f'<div class="tiles">{"".join(cells)}</div>'


def table(rows: Sequence[Figures]) -> str:
    """All figures of all casts; columns that nobody has are left out."""
    shown = [column for column in COLUMNS if any(row.summary.get(column[0]) is not None for row in rows)]
    head = "".join(f'<th title="{escape(means)}">{escape(name)}</th>' for _, name, _, means in shown)
    body = ""
    for row in rows:
        cells = "".join(_cell(row.summary.get(key), digits) for key, _, digits, _ in shown)
        body += f"<tr><td>{escape(row.title)}</td>{cells}</tr>"
    return f'<div class="card wide"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _cell(value: Estimate | None, digits: int) -> str:
    if value is None:
        return "<td>–</td>"
    mean = f"{value.mean:,.{digits}f}"
    return f"<td>{mean}{f' <small>± {value.half:,.{digits}f}</small>' if value.half else ''}</td>"


def category_bars(rows: Sequence[Figures]) -> str:
    """Likeness (or identity) and prompt fidelity per category, a colour per cast."""
    categories = list(rows[0].by_category)
    first = "likeness" if any(row.summary.get("likeness") for row in rows) else "identity"
    names = {first: _capital(first), "fidelity": "Prompt fidelity"}
    if any(row.summary.get("assigned") for row in rows):
        names |= {"assigned": "Faces that can be told to be who was named", "bleeding": "Bleeding (less is better)"}
    panels: list[str] = []
    for key, said in names.items():
        wanted = [c for c in categories if any(row.by_category.get(c, {}).get(key) for row in rows)]
        if not wanted:
            continue
        series = [
            Series(row.title, [row.by_category.get(c, {}).get(key) for c in wanted], i) for i, row in enumerate(rows)
        ]
        drawn = bars(wanted, series, title=said, top=1.0 if key in ("likeness", "assigned") else None)
        panels.append(f'<div class="card"><h3>{escape(said)}</h3>{legend(series)}{drawn}</div>')
    return f'<div class="two">{"".join(panels)}</div>'


def worst(group: Group) -> str:
    """The pictures least like the person, and those that miss most of the prompt, beside the photo."""
    owned = [(record, mark) for record, row in zip(group.records, group.figures.marks, strict=True) for mark in row]
    by_look = _few_of_each(sorted(owned, key=lambda pair: _look_of(pair[1])), len(group.records))
    disobedient = [pair for pair in owned if pair[1].fidelity is not None]
    by_prompt = sorted(disobedient, key=lambda pair: (pair[1].fidelity or 0.0, _look_of(pair[1])))
    if any("two" in mark.shot.seen.said for _, mark in disobedient):
        by_prompt = [pair for pair in by_prompt if (pair[1].fidelity or 0.0) < 1.0]
    shown = f"<h3>Least like the person</h3><div class='worst'>{''.join(_case(*pair) for pair in by_look)}</div>"
    if by_prompt:
        cards = "".join(_case(*pair) for pair in _few_of_each(by_prompt, len(group.records)))
        return f"{shown}<h3 style='margin-top:22px'>Least of the prompt</h3><div class='worst'>{cards}</div>"
    return f"{shown}<p class='note'>No picture misses anything that its prompt states.</p>" if disobedient else shown


def _few_of_each(cases: Sequence[tuple[Record, Mark]], people: int) -> list[tuple[Record, Mark]]:
    """The first cases, with nobody filling the page alone."""
    most = max(2, math.ceil(2 * _WORST / people))
    shown: list[tuple[Record, Mark]] = []
    for record, mark in cases:
        if sum(one is record for one, _ in shown) < most:
            shown.append((record, mark))
    return shown[:_WORST]


def _look_of(mark: Mark) -> float:
    return mark.likeness if mark.likeness is not None else mark.identity


def _case(record: Record, mark: Mark) -> str:
    photo = _image(record.photo, f"{record.name}, photo") if record.photo else "<span></span>"
    return (
        f'<div class="card">{photo}{_image(mark.shot.picture, mark.prompt.text)}'
        f"<p><b>{escape(_said(record, mark))}</b><br><span class='sub'>{escape(_verdict(mark))}</span></p></div>"
    )


def _said(record: Record, mark: Mark) -> str:
    other = "their partner" if mark.prompt.category == "pair" else "a celebrity"
    return mark.prompt.say(record.name, other)


def _verdict(mark: Mark) -> str:
    words = [f"{'likeness' if mark.likeness is not None else 'identity'} {_look_of(mark):.2f}"]
    if not mark.found:
        words.append("a face was not found")
    if mark.assigned == 0.0 and mark.found:
        words.append("cannot be told apart")
    if mark.fidelity is not None and "two" in mark.shot.seen.said:
        told = ["one or two people", *(f"{value}" for value in mark.prompt.states.values())]
        missed = [t for t, ok in zip(told, stated(mark.prompt, mark.shot.seen.said), strict=True) if not ok]
        words += [f"missing: {', '.join(missed)}"] if missed else []
    elif mark.fidelity is not None:
        words.append(f"CLIP {mark.fidelity:.2f}")
    return ", ".join(words)


def gallery(group: Group) -> str:
    """Everybody: the photo, one picture of some prompts, and all pictures behind a fold."""
    rows: list[str] = []
    for record, marks in zip(group.records, group.figures.marks, strict=True):
        person = group.figures.people[record.name]
        key = "likeness" if person.get("likeness") is not None else "identity"
        value = person.get(key)
        score = f"{key} {value:.3f}" if value is not None else ""
        photo = _image(record.photo, f"{record.name}, photo") if record.photo else ""
        rows.append(
            f'<div class="card person"><div>{photo}<b>{escape(record.name)}</b><span class="note">{score}</span></div>'
            f'<div><div class="strip">{"".join(_shown(mark) for mark in _some(marks))}</div>'
            f"<details><summary>all {len(marks)} pictures</summary>"
            f'<div class="strip">{"".join(_shown(mark) for mark in marks)}</div></details></div></div>'
        )
    return "".join(rows)


def side_by_side(groups: Sequence[Group]) -> str:
    """A few people as every cast that has them draws them: the same prompts and seeds in a row per cast."""
    rows: list[str] = []
    for number, record in enumerate(groups[0].records[:_COMPARED]):
        photo = _image(record.photo, f"{record.name}, photo") if record.photo else ""
        strips: list[str] = []
        for group in groups:
            if len(group.records) > number and group.records[number].name == record.name:
                strip = "".join(_shown(mark) for mark in _some(group.figures.marks[number]))
                strips.append(f'<h3>{escape(group.figures.title)}</h3><div class="strip">{strip}</div>')
        head = f"<div>{photo}<b>{escape(record.name)}</b></div>"
        rows.append(f'<div class="card person">{head}<div>{"".join(strips)}</div></div>')
    return "".join(rows)


def _some(marks: Sequence[Mark]) -> list[Mark]:
    """One picture of some prompts, evenly over the list."""
    first = [mark for mark in marks if mark.shot.draw == 0]
    step = max(1.0, len(first) / _GALLERY)
    return [first[int(i * step)] for i in range(min(_GALLERY, len(first)))]


def _shown(mark: Mark) -> str:
    text = mark.prompt.say("…", "…")
    said = f"<b>{_look_of(mark):.2f}</b> {escape(text)}"
    return f"<figure>{_image(mark.shot.picture, text)}<figcaption>{said}</figcaption></figure>"


def _image(data: bytes, said: str) -> str:
    return f'<img loading="lazy" alt="{escape(said)}" src="data:image/webp;base64,{base64.b64encode(data).decode()}">'


def _how(settings: Mapping[str, str]) -> str:
    means = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for _, name, _, text in COLUMNS)
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in settings.items())
    cards = f'<div class="card"><dl>{means}</dl></div><div class="card how"><table>{rows}</table></div>'
    return f'<div class="two">{cards}</div>'


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
