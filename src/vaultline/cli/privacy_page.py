"""The leakage report as one page: pictures, scores, and where a rule of thumb is wrong.

It needs nothing from outside, no script, and no font: it can be mailed or archived as it is.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from vaultline.bench.leakage import CutRecord, LeakageFindings, Shown
from vaultline.cli.privacy_style import STYLE
from vaultline.cli.privacy_verdicts import Verdicts
from vaultline.core.leakage import PSNR_DB_MAX, CutLeakage
from vaultline.privacy import RESOLUTION_RULE_PX

#: What is said of a cut's tensors before "and n more".
_TENSORS_NAMED = 3
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 1120, 330, 40, 14, 44
#: Longest side of a picture on the page: three times three of them fit beside the scores.
_SIDE_PX = 88
#: Positions written below the curve; more would overlap.
_TICKS_MAX = 36

_NOT_SAID = (
    (
        "Stronger attackers.",
        "The attack is cheap on purpose. A larger decoder, trained on many more pictures of the "
        "same kind, or one that searches for the input that gives these tensors, may get more "
        "back. A low score is evidence, not proof.",
    ),
    (
        "Other pictures.",
        "The scores hold for pictures like those given. Text, faces or signs may come through "
        "where landscapes do not.",
    ),
    (
        "What a picture is about.",
        "A tensor that cannot be turned back into pixels may still tell which object, how many "
        "people, or whether it is night: the last tensors are made to say exactly that.",
    ),
    (
        "Membership.",
        "Whether a picture was among those the model was trained on is another attack.",
    ),
    (
        "The model itself.",
        "Who sees the tensors on both sides of a stage can learn to imitate it, and who runs a "
        "stage has its weights: model privacy is a policy of its own.",
    ),
    (
        "Many frames.",
        "Each picture is attacked alone. A video shows the same scene again and again.",
    ),
)


def page(found: LeakageFindings, verdicts: Verdicts) -> str:
    """The whole page."""
    report = found.report
    title = f"Leakage of {report.model_name}"
    parts = (
        _head(title, found.inputs),
        "<body><main>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{_what_was_done(found)}</p>',
        f'<p class="lead">{escape(_capital(verdicts.sentence))}.</p>',
        _inputs(found),
        "<h2>Along the model</h2>",
        _curve(found, verdicts),
        f"<h2>Where the {RESOLUTION_RULE_PX}-pixel rule and the attack disagree</h2>",
        _disagreements(found, verdicts),
        "<h2>Cut by cut</h2>",
        "<p class='soft'>Of each attacked picture: the model's input, the channel that looks most "
        "like it, and what the attack makes of all crossing tensors. A cut at position "
        "<i>k</i> lies before node <i>k</i> of the model's topological order.</p>",
        *(_cut(record, found, verdicts) for record in found.records),
        "<h2>What these numbers do not say</h2>",
        _not_said(),
        "<h2>How it was measured</h2>",
        _measured(found),
        "</main></body></html>\n",
    )
    return "\n".join(parts)


def _head(title: str, inputs: Sequence[bytes]) -> str:
    """Inputs appear at every cut and are written here once."""
    pictures = "\n".join(
        f".in{index}{{background-image:url({_data_uri(png)})}}" for index, png in enumerate(inputs)
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{pictures}</style></head>"
    )


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _size(png: bytes) -> tuple[int, int]:
    """Width and height on the page, from those in a PNG's header."""
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    ratio = _SIDE_PX / max(width, height)
    return max(1, round(width * ratio)), max(1, round(height * ratio))


def _what_was_done(found: LeakageFindings) -> str:
    report = found.report
    attack = "A ridge decoder" if report.decoder == "ridge" else "A convolutional decoder"
    return escape(
        f"{attack} was fitted on {_count(found.training, 'picture')} and tried on "
        f"{_count(found.held_out, 'other')}, at {_count(len(report.cuts), 'cut')}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s'[: number != 1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _input(index: int, png: bytes) -> str:
    width, height = _size(png)
    return (
        f'<div class="pic in in{index}" role="img" aria-label="input {index + 1}" '
        f'style="width:{width}px;height:{height}px"></div>'
    )


def _image(png: bytes, label: str, like: bytes) -> str:
    """A picture at the size of another, so that the three of a trio line up."""
    width, height = _size(like)
    return (
        f'<img class="pic" width="{width}" height="{height}" alt="{escape(label)}" '
        f'src="{_data_uri(png)}">'
    )


def _inputs(found: LeakageFindings) -> str:
    shown = "".join(
        f"<figure>{_input(index, png)}<figcaption>input {index + 1}</figcaption></figure>"
        for index, png in enumerate(found.inputs)
    )
    more = found.held_out - len(found.inputs)
    tail = f"; scores are means over these and {more} more" if more > 0 else ""
    return (
        f'<div class="strip">{shown}</div><p class="soft">The attacked pictures, as the model gets '
        f"them{tail}. The attack has not seen them before.</p>"
    )


def _curve(found: LeakageFindings, verdicts: Verdicts) -> str:
    cuts = found.report.cuts
    side = max(max(cut.resolution_px for cut in cuts), 1)
    rule = RESOLUTION_RULE_PX / side
    series = (
        ("--pixels", [cut.resolution_px / side for cut in cuts]),
        ("--channel", [max(0.0, cut.similarity) for cut in cuts]),
        ("--attack", [max(0.0, cut.reconstruction) for cut in cuts]),
    )
    drawn = [
        *_bands(cuts, verdicts),
        *_axes(cuts),
        _level(verdicts.limit, "limit", f"limit {verdicts.limit:g}"),
        *([_level(rule, "grid", f"{RESOLUTION_RULE_PX} px")] if rule < 1 else []),
        *(
            f'<polyline class="curve" style="stroke:var({colour})" points="'
            + " ".join(f"{_x(i, cuts):.1f},{_y(value):.1f}" for i, value in enumerate(values))
            + '"/>'
            for colour, values in series
        ),
        *(_dot(index, cut, cuts) for index, cut in enumerate(cuts)),
    ]
    legend = (
        ("--attack", "reconstruction: the attack, from a guess (0) to a copy (1)"),
        ("--channel", "similarity: the channel most like the input (SSIM)"),
        ("--pixels", f"resolution: longest side, of {side} pixels"),
    )
    keys = "".join(
        f'<span><span class="key" style="border-color:var({colour})"></span>{escape(text)}</span>'
        for colour, text in legend
    )
    if verdicts.missed:
        keys += "<span><span class='patch'></span>the rule passes, the attack succeeds</span>"
    return (
        f'<div class="card"><div class="legend">{keys}</div>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="scores of each cut">{"".join(drawn)}</svg></div>'
    )


def _x(index: int, cuts: Sequence[CutLeakage]) -> float:
    room = _WIDTH - _LEFT - 20
    return _LEFT + room / 2 if len(cuts) == 1 else _LEFT + 10 + room * index / (len(cuts) - 1)


def _y(value: float) -> float:
    return _TOP + (1 - value) * (_HEIGHT - _TOP - _BOTTOM)


def _bands(cuts: Sequence[CutLeakage], verdicts: Verdicts) -> Iterator[str]:
    """Red behind the cuts that the rule would release although the attack succeeds."""
    half = (_x(1, cuts) - _x(0, cuts)) / 2 if len(cuts) > 1 else 20
    for index, cut in enumerate(cuts):
        if cut.position in verdicts.missed:
            yield (
                f'<rect class="band" x="{_x(index, cuts) - half:.1f}" y="{_TOP}" '
                f'width="{2 * half:.1f}" height="{_HEIGHT - _TOP - _BOTTOM}"/>'
            )


def _axes(cuts: Sequence[CutLeakage]) -> Iterator[str]:
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    step = -(-len(cuts) // _TICKS_MAX)
    for index in range(0, len(cuts), step):
        yield (
            f'<text x="{_x(index, cuts):.1f}" y="{_HEIGHT - _BOTTOM + 18}" '
            f'text-anchor="middle">{cuts[index].position}</text>'
        )
    middle = (_LEFT + _WIDTH) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">position of the cut</text>'


def _level(value: float, kind: str, text: str) -> str:
    y = _y(value)
    return (
        f'<line class="{kind}" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_WIDTH}" y="{y - 5:.1f}" text-anchor="end">{escape(text)}</text>'
    )


def _dot(index: int, cut: CutLeakage, cuts: Sequence[CutLeakage]) -> str:
    told = (
        f"position {cut.position}: reconstruction {cut.reconstruction:.2f}, "
        f"similarity {cut.similarity:.2f}, {cut.resolution_px} px"
    )
    return (
        f'<circle class="dot" cx="{_x(index, cuts):.1f}" cy="{_y(max(0, cut.reconstruction)):.1f}" '
        f'r="4.5" style="fill:var(--attack)"><title>{escape(told)}</title></circle>'
    )


def _disagreements(found: LeakageFindings, verdicts: Verdicts) -> str:
    by_position = {cut.position: cut for cut in found.report.cuts}
    missed = _listed(by_position[position] for position in verdicts.missed)
    over = _listed(by_position[position] for position in verdicts.overcautious)
    limit = f"{verdicts.limit:g}"
    rule = (
        "<p>The rule of thumb: planes of at most "
        f"{RESOLUTION_RULE_PX} pixels a side show nothing, larger ones do. "
        f"The attack: what it gets back beyond {limit} is a success.</p>"
    )
    if missed:
        first = (
            f'<div class="card red"><h3>The rule passes, the attack succeeds</h3>Released by the '
            f"rule, these would show the input:<ul>{missed}</ul></div>"
        )
    else:
        first = (
            '<div class="card none"><h3>The rule passes, the attack succeeds: nowhere</h3>'
            "At every cut that the rule would release, the attack stays below the limit.</div>"
        )
    if over:
        second = (
            '<div class="card amber"><h3>The rule fails, the attack does not succeed</h3>Held back '
            f"by the rule, though little came back here:<ul>{over}</ul></div>"
        )
    else:
        second = (
            '<div class="card none"><h3>The rule fails, the attack does not succeed: nowhere</h3>'
            "Every cut that the rule holds back showed the input.</div>"
        )
    return f'{rule}<div class="two">{first}{second}</div>'


def _listed(cuts: Iterable[CutLeakage]) -> str:
    return "".join(
        f'<li><a href="#cut{cut.position}">position {cut.position}</a>, '
        f"{cut.resolution_px} px, reconstruction {cut.reconstruction:.2f} "
        f'<span class="soft">({escape(_tensors(cut))})</span></li>'
        for cut in cuts
    )


def _tensors(cut: CutLeakage) -> str:
    named = ", ".join(cut.tensors[:_TENSORS_NAMED]) or "nothing"
    more = len(cut.tensors) - _TENSORS_NAMED
    return named + (f" and {more} more" if more > 0 else "")


def _cut(record: CutRecord, found: LeakageFindings, verdicts: Verdicts) -> str:
    cut = record.leakage
    kind, chips = _chips(cut, verdicts)
    shapes = ", ".join("×".join(map(str, shape[1:])) for shape in record.shapes[:_TENSORS_NAMED])
    scores = (
        _score("reconstruction", cut.reconstruction, "--attack", verdicts.limit),
        _score("similarity", cut.similarity, "--channel", None),
    )
    worse = verdicts.later_is_worse(cut)
    notes = [f"{cut.resolution_px} px", _psnr(cut)]
    if cut.ssim is not None:
        notes.append(f"SSIM {cut.ssim:.2f} (a guess: {record.blind_ssim:.2f})")
    if cut.revealing:
        notes.append(f"channel {cut.revealing}")
    warning = (
        f'<div class="soft small">Who knows the weights can go on from here to position '
        f"{worse.position}, which shows more ({worse.reconstruction:.2f}).</div>"
        if worse
        else ""
    )
    trios = "".join(
        _trio(index, png, shown)
        for index, (png, shown) in enumerate(zip(found.inputs, record.shown, strict=False))
    )
    return (
        f'<section class="card cut {kind}" id="cut{cut.position}"><div>'
        f"<h3>Position {cut.position} {chips}</h3>"
        f'<div class="soft mono">{escape(_tensors(cut))} · {escape(shapes)}</div>'
        f"{''.join(scores)}"
        f'<div class="soft small">{escape(" · ".join(notes))}</div>'
        f'{warning}</div><div class="trios">{trios}</div></section>'
    )


def _psnr(cut: CutLeakage) -> str:
    return "PSNR beyond 100 dB" if cut.psnr_db >= PSNR_DB_MAX else f"PSNR {cut.psnr_db:.1f} dB"


def _chips(cut: CutLeakage, verdicts: Verdicts) -> tuple[str, str]:
    """The card's kind, and what is said beside its title."""
    succeeds = verdicts.attack_succeeds(cut)
    kind, word = ("bad", "shows the input") if succeeds else ("good", "below the limit")
    chips = [f'<span class="chip {kind}">{word}</span>']
    if cut.position in verdicts.missed:
        chips.append('<span class="chip bad">the rule would release it</span>')
        return "red", "".join(chips)
    if cut.position in verdicts.overcautious:
        chips.append('<span class="chip odd">the rule would hold it back</span>')
        return "amber", "".join(chips)
    return "", "".join(chips)


def _score(name: str, value: float, colour: str, limit: float | None) -> str:
    mark = "" if limit is None else f'<u style="left:{100 * limit:.1f}%"></u>'
    return (
        f'<div class="score"><span>{name}</span><span class="bar">'
        f'<i style="width:{100 * min(1.0, max(0.0, value)):.1f}%;background:var({colour})"></i>'
        f"{mark}</span><b>{value:.2f}</b></div>"
    )


def _trio(index: int, png: bytes, shown: Shown) -> str:
    width, height = _size(png)
    if shown.channel:
        channel = _image(shown.channel, f"most revealing channel, input {index + 1}", png)
    else:
        channel = (
            f'<div class="pic empty" style="width:{width}px;height:{height}px">'
            "no channel with pixels</div>"
        )
    made = _image(shown.reconstruction, f"reconstruction of input {index + 1}", png)
    captions = ("input", "channel", f"attack, {shown.ssim:.2f}")
    pictures = (_input(index, png), channel, made)
    return (
        '<div class="trio">'
        + "".join(
            f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"
            for picture, caption in zip(pictures, captions, strict=True)
        )
        + "</div>"
    )


def _not_said() -> str:
    items = "".join(f"<li><b>{escape(a)}</b> {escape(b)}</li>" for a, b in _NOT_SAID)
    return f'<div class="card"><ul>{items}</ul></div>'


def _measured(found: LeakageFindings) -> str:
    report = found.report
    where = report.recorded_on
    seconds = sum(record.elapsed_s for record in found.records)
    rows = (
        ("command", f"<code>{escape(where.command)}</code>"),
        ("when and where", escape(f"{where.date}, {where.host}, {where.cpu}")),
        ("model", f"{escape(report.model_name)} <code>{escape(report.model_digest[:16])}…</code>"),
        ("pictures", f"{report.images} <code>{escape(report.images_digest[:16])}…</code>"),
        ("attacks", f"{seconds:.0f} s for {_count(len(found.records), 'cut')}"),
        (
            "reconstruction",
            "mean SSIM (Wang et al. 2004, grey) of reconstructions, scaled so that 0 is the better "
            "of the mean training picture and its colour, and 1 is a copy",
        ),
        (
            "similarity",
            "SSIM of the input, grey and resized, with the best channel or its negative, each "
            "scaled to its own range; the mean over the attacked pictures",
        ),
    )
    cells = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in rows)
    return f'<div class="card"><table>{cells}</table></div>'
