"""The page's plots: altair charts as SVG text, in colours that the page's style sheet sets for light and dark."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup

from bakeoff.report.summary import COSTS, UNTOUCHED, Row, Summary, change, cost_in_words, decided, short_labels

COLOURS = 8
# Paths within [-1, 1], for Vega and for the page's legend; seven of them and eight colours make 56 different marks.
SHAPES = (
    "M-.8,0A.8,.8,0,1,1,.8,0A.8,.8,0,1,1,-.8,0Z",
    "M-.75,-.75H.75V.75H-.75Z",
    "M0,-1L1,0L0,1L-1,0Z",
    "M0,-.9L.95,.8L-.95,.8Z",
    "M0,.9L.95,-.8L-.95,-.8Z",
    "M-.35,-.95H.35V-.35H.95V.35H.35V.95H-.35V.35H-.95V-.35H-.35Z",
    "M-.8,-.95L.9,0L-.8,.95Z",
)
Points = Sequence[tuple[float, float]]

_WIDTH = 380
_INK, _FAINT, _LINE = "var(--ink)", "var(--faint)", "var(--line)"
_ABOVE: dict[str, Any] = {"align": "left", "baseline": "bottom"}
_DECIDED = {"better": "var(--better)", "worse": "var(--worse)", "undecided": "var(--faint)"}


def colour(place: int) -> str:
    """The style sheet's colour of the method at a place in the order of the command line."""
    return f"var(--m{place % COLOURS})"


def shape(place: int) -> str:
    return SHAPES[place % len(SHAPES)]


def pareto(summary: Summary, benefit: str, harm: str, places: Mapping[str, int]) -> Markup | None:
    """Gain against harm, both as the change from the untouched model; None where no method has both."""
    points, seeds = [], []
    for row in summary.rows:
        effects = [row.effects[UNTOUCHED, name] for name in (benefit, harm) if (UNTOUCHED, name) in row.effects]
        if len(effects) < 2:
            continue
        signs = [_improves(summary, benefit), -_improves(summary, harm)]
        at: dict[str, Any] = {"method": row.label}
        for axis, sign, effect in zip("xy", signs, effects, strict=True):
            low, high = (effect["effect"] if effect[end] is None else effect[end] for end in ("low", "high"))
            at |= {axis: sign * effect["effect"], f"{axis}_low": sign * low, f"{axis}_high": sign * high}
        points.append(at)
        per_seed = zip(effects[0]["per_seed"], effects[1]["per_seed"], strict=True)
        seeds += [{"method": row.label, "x": signs[0] * x, "y": signs[1] * y} for x, y in per_seed]
    if not points:
        return None
    origin = {"x": 0.0, "y": 0.0}
    means: list[dict[str, Any]] = [*points, origin]
    front = [p for p in means if not any(_dominates(q, p) for q in means)]
    x = alt.X("x:Q", title=_axis(summary, benefit, _improves(summary, benefit)) + " →", scale=alt.Scale(zero=True))
    y = alt.Y("y:Q", title=_axis(summary, harm, -_improves(summary, harm)) + " →", scale=alt.Scale(zero=True))
    fill = _scale("fill", places)
    marker = alt.Shape(
        "method:N", legend=None, scale=alt.Scale(domain=list(places), range=[shape(i) for i in places.values()])
    )
    base = _chart(points)
    layers = [
        _chart([origin]).mark_rule(color=_LINE).encode(y=alt.Y("y:Q")),
        _chart([origin]).mark_rule(color=_LINE).encode(x=alt.X("x:Q")),
        _chart(front)
        .mark_line(color=_FAINT, strokeDash=[3, 3], strokeWidth=1, interpolate="step-before")
        .encode(x, y, order=alt.Order("x:Q")),
        base.mark_rule(strokeWidth=1.5).encode(y, _scale("stroke", places), x=alt.X("x_low:Q"), x2="x_high:Q"),
        base.mark_rule(strokeWidth=1.5).encode(x, _scale("stroke", places), y=alt.Y("y_low:Q"), y2="y_high:Q"),
        _chart(seeds).mark_point(size=14, opacity=0.6).encode(x, y, fill, marker),
        base.mark_point(size=90, opacity=1, stroke="var(--paper)", strokeWidth=1).encode(x, y, fill, marker),
        _chart([origin]).mark_point(size=60, shape="cross", fill=_INK, opacity=1).encode(x, y),
        _chart([{**origin, "t": UNTOUCHED}]).mark_text(align="left", dx=9, dy=9, color=_INK).encode(x, y, text="t:N"),
    ]
    told = "; ".join(f"{p['method']}: {p['x']:.3g} and {p['y']:.3g}" for p in points)
    return _svg(
        layers, 330, "pareto", f"Gain in {benefit} against harm to {harm}",
        f"Change from the untouched model, gain and harm of each method: {told}.",
    )  # fmt: skip


def forest(summary: Summary, metric: str, baseline: str, name: str) -> Markup | None:
    """Each method's effect on a metric against a baseline, with interval and single seeds; None where there is none."""
    found = [(row, row.effects[baseline, metric]) for row in summary.rows if (baseline, metric) in row.effects]
    if not found:
        return None
    names = short_labels((row.label for row, _ in found), 34)
    points = [
        {
            "method": names[row.label], "x": e["effect"], "low": e["low"], "high": e["high"],
            "colour": _DECIDED[e["decided"]], "text": " · ".join(filter(None, (names[row.label], decided(e)))),
        }
        for row, e in found
    ]  # fmt: skip
    seeds = [{"method": names[row.label], "x": value} for row, e in found for value in e["per_seed"]]
    better = summary.metrics[metric]["better"]
    title = f"change against {short_labels([baseline], 24)[baseline]}, {summary.metrics[metric]['unit']}"
    x = alt.X("x:Q", title=f"← better · {title}" if better == "lower" else f"{title} · better →")
    y = _bands("method", [p["method"] for p in points])
    ink = alt.Color("colour:N", scale=None)
    base = _chart(points)
    whole = [p for p in points if p["low"] is not None]
    layers = [
        _chart([{"zero": 0}]).mark_rule(color=_INK).encode(x=alt.X("zero:Q")),
        _chart(whole).mark_rule(strokeWidth=2).encode(y, ink, x=alt.X("low:Q"), x2="high:Q"),
        _chart(seeds).mark_tick(color=_INK, height=11, thickness=1, opacity=0.55).encode(x, y),
        base.mark_circle(size=60, opacity=1).encode(x, y, ink),
        base.mark_text(**_ABOVE, dy=-8, stroke="var(--paper)", strokeWidth=4).encode(y, x=alt.value(0), text="text:N"),
        base.mark_text(**_ABOVE, dy=-8).encode(y, ink, x=alt.value(0), text="text:N"),
    ]
    told = "; ".join(f"{row.label}: {change(e)} {decided(e)}".strip() for row, e in found)
    return _svg(layers, 46 + 42 * len(points), name, f"{metric}, effect against {baseline}", f"{told}.")


def curves(
    losses: Mapping[str, Mapping[int, Points]], places: Mapping[str, int], along: str, means: bool = True
) -> list[tuple[str, Markup]]:
    """The training loss of each label, on common axes: a line for each seed and, thick, their mean.

    losses: for each label and seed the points (how far, loss), the first measured as the axis title `along` says. A label
    without any point gets no plot. means: False where seeds have no points in common.
    """
    points = [point for seeds in losses.values() for line in seeds.values() for point in line]
    if not points:
        return []
    far, heights = zip(*points, strict=True)
    x = alt.X("step:Q", title=along, scale=alt.Scale(domain=(min(far), max(far)), nice=False))
    y = alt.Y("loss:Q", title="training loss", scale=alt.Scale(domain=(min(heights), max(heights)), zero=False))
    drawn = []
    for label, seeds in losses.items():
        own = [{"seed": seed, "step": step, "loss": loss} for seed, line in seeds.items() for step, loss in line]
        if not own:
            continue
        base, ink = _chart(own), colour(places[label])
        layers = [base.mark_line(color=ink, strokeWidth=1, opacity=0.5 if means else 1).encode(x, y, detail="seed:N")]
        if means:
            mean = alt.Y("mean(loss):Q", title="training loss")
            layers.append(base.mark_line(color=ink, strokeWidth=2.2).encode(x, mean))
        told = f"Training loss of {label} from {own[0]['loss']:.4g} to {own[-1]['loss']:.4g} at {along} {own[-1]['step']:g}."
        drawn.append((label, _svg(layers, 190, f"curve-{places[label]}", f"Training loss of {label}", told)))
    return drawn


def lines(curve: Mapping[str, Any], places: Mapping[str, int], name: str) -> Markup:
    """A study's curve: for each label its mean over the seeds, and each seed's value as a dot.

    The horizontal axis is logarithmic where it spans a factor of 50 or more.
    """
    means, seeds = [], []
    for label, points in curve["lines"].items():
        means += [{"method": label, "x": at, "y": sum(values) / len(values)} for at, *values in points]
        seeds += [{"method": label, "x": at, "y": value} for at, *values in points for value in values]
    across = [point["x"] for point in means]
    scale = alt.Scale(type="log") if min(across) > 0 and max(across) >= 50 * min(across) else alt.Scale(zero=False)
    x = alt.X("x:Q", title=curve["x"], scale=scale)
    y = alt.Y("y:Q", title=curve["y"], scale=alt.Scale(zero=False))
    domain = list(places)
    marker = alt.Shape(
        "method:N", legend=None, scale=alt.Scale(domain=domain, range=[shape(i) for i in places.values()])
    )
    base = _chart(means)
    layers = [
        _chart(seeds).mark_point(size=10, opacity=0.45).encode(x, y, _scale("fill", places)),
        base.mark_line(strokeWidth=2).encode(x, y, _scale("stroke", places)),
        base.mark_point(size=55, opacity=1, stroke="var(--paper)", strokeWidth=1).encode(
            x, y, _scale("fill", places), marker
        ),
    ]
    told = "; ".join(
        f"{label} from {sum(first) / len(first):.3g} to {sum(last) / len(last):.3g}"
        for label, ((_, *first), *_, (_, *last)) in ((k, [*v, v[-1]]) for k, v in curve["lines"].items())
    )
    return _svg(layers, 250, name, curve["title"], f"{curve['y']} over {curve['x']}: {told}.")


def expectation(expected: Mapping[str, Any], name: str) -> Markup:
    """One expectation of a study: its effect with interval and single seeds, and, dashed, the bound that it was to lie beyond."""
    side, bound = ("below", expected["below"]) if expected["above"] is None else ("above", expected["above"])
    whole = [] if expected["low"] is None else [{"low": expected["low"], "high": expected["high"]}]
    ink = _DECIDED[{"holds": "better", "fails": "worse"}.get(expected["outcome"], "undecided")]
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=False))
    seeds = [{"x": value} for value in expected["per_seed"]]
    layers = [
        _chart([{"x": bound}]).mark_rule(color=_INK, strokeDash=[4, 3]).encode(x),
        _chart(whole).mark_rule(color=ink, strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q", y=alt.value(22)),
        _chart(seeds).mark_tick(color=_INK, height=11, thickness=1, opacity=0.55).encode(x, y=alt.value(22)),
        _chart([{"x": expected["effect"]}]).mark_circle(size=60, opacity=1, color=ink).encode(x, y=alt.value(22)),
        _chart([{"x": bound, "t": f"expected {side}"}])
        .mark_text(align="left" if side == "above" else "right", dx=4 if side == "above" else -4, color=_FAINT)
        .encode(x, y=alt.value(4), text="t:N"),
    ]
    told = f"Effect {expected['effect']:.4g}, expected {side} {bound:g}: {expected['outcome']}."
    return _svg(layers, 78, name, expected["sentence"], told)


def thinned(curve: Sequence[Sequence[float]], count: int = 100) -> list[tuple[int, float]]:
    """Steps and losses of a curve of (step, tokens, loss), every so many, and the last."""
    every = max(1, len(curve) // count)
    chosen = list(curve[::every])
    if curve and (len(curve) - 1) % every:
        chosen.append(curve[-1])
    return [(int(step), float(f"{loss:.4g}")) for step, _, loss in chosen]


def costs(rows: Sequence[Row], cost: str, places: Mapping[str, int], name: str) -> Markup:
    """One cost of each method as bars from 0."""
    rows = [row for row in rows if cost in row.costs]
    names = short_labels((row.label for row in rows), 30)
    points: list[dict[str, Any]] = [
        {
            "method": names[row.label], "value": row.costs[cost], "colour": colour(places[row.label]),
            "text": f"{names[row.label]} · {cost_in_words(cost, row.costs[cost])}",
        }
        for row in rows
    ]  # fmt: skip
    y = _bands("method", [p["method"] for p in points])
    base = _chart(points)
    layers = [
        base.mark_bar(height=10).encode(
            y, alt.Color("colour:N", scale=None), x=alt.X("value:Q", axis=None, scale=alt.Scale(zero=True))
        ),
        base.mark_text(**_ABOVE, dy=-7, color=_INK).encode(y, x=alt.value(0), text="text:N"),
    ]
    told = "; ".join(f"{row.label}: {cost_in_words(cost, row.costs[cost])}" for row in rows)
    return _svg(layers, 12 + 36 * len(points), name, f"{COSTS[cost].capitalize()}, lower is better", f"{told}.")


def _chart(values: Sequence[Mapping[str, Any]]) -> Any:
    return alt.Chart({"values": list(values)})


def _improves(summary: Summary, metric: str) -> int:
    return 1 if summary.metrics[metric]["better"] == "higher" else -1


def _axis(summary: Summary, metric: str, sign: int) -> str:
    return f"{metric} {'rises' if sign > 0 else 'falls'} by, {summary.metrics[metric]['unit']}"


def _dominates(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    here, there = (one["x"], -one["y"]), (other["x"], -other["y"])
    return here != there and all(a >= b for a, b in zip(here, there, strict=True))


def _scale(channel: str, places: Mapping[str, int]) -> Any:
    scale = alt.Scale(domain=list(places), range=[colour(i) for i in places.values()])
    return {"fill": alt.Fill, "stroke": alt.Stroke}[channel]("method:N", legend=None, scale=scale)


def _bands(field: str, order: Sequence[str]) -> Any:
    return alt.Y(f"{field}:N", sort=list(order), axis=None, scale=alt.Scale(paddingInner=0.2, paddingOuter=0.4))


def _svg(layers: Sequence[Any], height: int, name: str, title: str, description: str) -> Markup:
    """The chart as an SVG element that scales down with the page and is read out as its title and description."""
    axis = {
        "domainColor": _LINE, "tickColor": _LINE, "gridColor": _LINE, "gridOpacity": 0.6, "labelColor": _FAINT,
        "titleColor": _INK, "labelFontSize": 12, "titleFontSize": 12.5, "titleFontWeight": "normal",
        "tickCount": 5, "labelOverlap": "greedy", "labelSeparation": 6,
    }  # fmt: skip
    chart = (
        alt.layer(*layers)
        .properties(width=_WIDTH, height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding"))
        .configure(background="transparent", font="system-ui, sans-serif", aria=False, padding=4)
        .configure_view(stroke=None)
        .configure_axis(**axis)
        .configure_text(fontSize=12.5)
        .configure_point(filled=True)
    )
    drawn = vl_convert.vegalite_to_svg(chart.to_dict())
    head = re.match(r'<svg[^>]*viewBox="([^"]*)"[^>]*>', drawn)
    if head is None:
        raise ValueError("vl-convert drew no SVG with a viewBox")
    # The whole is one image with a title, so that its parts are none.
    parts = re.sub(
        r"<g [^>]*>", lambda tag: re.sub(r' (role|aria-roledescription)="[^"]*"', "", tag[0]), drawn[head.end() :]
    )
    opened = Markup(
        '<svg class="plot" role="img" aria-labelledby="{0}-title {0}-desc" viewBox="{1}">'
        '<title id="{0}-title">{2}</title><desc id="{0}-desc">{3}</desc>'
    ).format(name, head[1], title, description)
    return opened + Markup(parts)
