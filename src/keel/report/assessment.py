"""How far a reward model can be trusted, in words and pictures: a page of its own, and a part of its run's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keel.report.facts import Row, of_runs
from keel.report.figures import Curve, Level, Panel
from keel.report.numbers import ABSENT, count, dig, known, number, percent, percent_interval
from keel.runs import files
from keel.runs.read import RunView

FILE = "assessment.json"
_WIDE = 1.96  # standard errors

Drawn = tuple[Any, str]
"""An assessment and its colour."""


def read(stage: Path) -> dict[str, Any] | None:
    """The assessment of a reward stage's model, if there is one."""
    return files.read_json(stage / FILE)


def of_run(run: RunView) -> dict[str, Any] | None:
    """The same of a run."""
    stage = run.stages.get("reward")
    return None if stage is None else read(stage.path)


def about(found: Any) -> str | None:
    """On what, in a sentence; None where there is no assessment."""
    if not found:
        return None
    where = "held out by its own stage" if found["held_out"] else f"of {', '.join(found['data'])}"
    return f"On {count(found['accuracy']['pairs'])} comparisons of {count(found['prompts'])} prompts, {where}."


def rows(found: Sequence[Any]) -> list[Row]:
    """The figures that matter, a column an assessment; rows that none knows are left out."""
    return of_runs(_FIGURES, found)


def reply_rows(found: Any) -> list[list[str]]:
    """What the model meets besides comparisons, below its header."""
    groups = dig(found, "replies") or []
    apart = any("disagreement" in group for group in groups)
    header = ["", "median score", "passes of the real", "beats its prompt’s"]
    lines = [header + (["members disagree", "above the real"] if apart else [])]
    for group in groups:
        line = [group["name"], number(group["quartiles"][1]), percent(group["percentile"]), percent(group["beats"])]
        more = [number(group.get("disagreement")), percent(group.get("disagreement_above"))]
        lines.append(line + (more if apart else []))
    return lines


def tables(found: Any) -> list[tuple[str, list[list[str]]]]:
    """Accuracy by what else is known of a comparison, each with its title; only those that tell something apart."""
    sources = [[one["name"], *_accuracy_cells(one)] for one in dig(found, "by_source") or []]
    agreement = [
        [f"{percent(one['from'])} to {percent(one['to'])}", percent(one["agreement"], 1), *_accuracy_cells(one)]
        for one in dig(found, "by_agreement") or []
    ]
    made = (
        ("By source", ["source", "right", "95%", "pairs"], sources if len(sources) > 1 else []),
        ("By agreement of the annotators", ["votes that agree", "mean", "right", "95%", "pairs"], agreement),
    )
    return [(title, [header, *lines]) for title, header, lines in made if lines]


def _accuracy_cells(one: Any) -> list[str]:
    return [percent(one["accuracy"], 1), percent_interval(one["interval"]), count(one["pairs"])]


def _accuracy(*keys: str) -> Callable[[Any], str]:
    def form(found: Any) -> str:
        one = dig(found, *keys)
        if not one or one["accuracy"] is None:
            return ABSENT
        return f"{percent(one['accuracy'], 1)} {percent_interval(one['interval'])} of {count(one['pairs'])}"

    return form


def _value(*keys: str, digits: int = 2) -> Callable[[Any], str]:
    return lambda found: number(dig(found, *keys), digits)


def _ceiling(found: Any) -> str:
    """The bounds that votes give."""
    low, high = (dig(found, "ceiling", end) for end in ("lowest", "highest"))
    return ABSENT if known(low) is None else f"{percent(low, 1)} to {percent(high, 1)}"


def _temperature(found: Any) -> str:
    before, after = dig(found, "calibration", "nll"), dig(found, "calibration", "nll_at_temperature")
    if known(after) is None:
        return ABSENT
    return f"{_value('calibration', 'temperature')(found)} (loss {number(before, 3)} → {number(after, 3)})"


def _calibration_error(found: Any) -> str:
    chance, error = dig(found, "calibration", "ece_by_chance"), dig(found, "calibration", "ece")
    return ABSENT if known(error) is None else f"{number(error, 3)} (by chance {number(chance, 3)})"


def _with_length(kind: str) -> Callable[[Any], str]:
    def form(found: Any) -> str:
        over, within = dig(found, "length", kind), dig(found, "length", f"{kind}_within")
        return ABSENT if known(over) is None else f"{number(over)} (of one prompt: {number(within)})"

    return form


def _invariance(name: str) -> Callable[[Any], str]:
    def form(found: Any) -> str:
        change, limit = known(dig(found, "invariance", name)), known(dig(found, "invariance", "tolerance"))
        return (
            ABSENT
            if change is None
            else f"{change:.1e} ({'within' if change <= (limit or 0) else 'beyond'} {limit:.1e})"
        )

    return form


_FIGURES: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("right", _accuracy("accuracy")),
    ("always the longer reply", lambda found: percent(dig(found, "length", "longer_wins"), 1)),
    ("right where the shorter one was preferred", _accuracy("length", "shorter_preferred")),
    ("right where the longer one was preferred", _accuracy("length", "longer_preferred")),
    ("noise allows", lambda found: percent(dig(found, "stated_ceiling"), 1)),
    ("people allow", _ceiling),
    ("right on what several people judged", _accuracy("ceiling", "model")),
    ("calibration error", _calibration_error),
    ("temperature that calibrates it", _temperature),
    ("score with length, Pearson", _with_length("pearson")),
    ("score with length, Spearman", _with_length("spearman")),
    ("a score’s change with its batch", _invariance("batch")),
    ("with padding", _invariance("padding")),
    ("with the order", _invariance("order")),
    ("ties, left out", lambda found: count(dig(found, "ties_left_out") or None)),
    ("replies whose prompt was cut", lambda found: count(dig(found, "cut") or None)),
)


def panels(found: Sequence[Drawn]) -> list[Panel]:
    """The pictures, those of several runs in one; probes are one run's each."""
    return [
        _by_value(
            found,
            "by_margin",
            "Accuracy by margin",
            "Pairs by the difference of their scores. Healthy: rises; a model that errs at large margins is sure of "
            "something else than what people prefer.",
            "difference of the scores",
        ),
        _by_value(
            found,
            "by_stated_margin",
            "Accuracy by the annotators’ margin",
            "Pairs by how clearly one was preferred. Healthy: rises.",
            "margin in the data",
        ),
        _by_value(
            found,
            "by_length_difference",
            "Accuracy by length difference",
            "Left of 0 the shorter reply was preferred. Healthy: level, but for pairs of like length; a slope is a "
            "model that goes by length.",
            "characters, preferred minus other",
        ),
        _length(found),
        *(_replies(one, colour) for one, colour in found),
    ]


def own_reliability(found: Sequence[Drawn]) -> list[Panel]:
    """The picture of those that give log-odds; a run's stage has one of what it held out already."""
    bins = [(part, colour) for one, colour in found if (part := dig(one, "calibration", "reliability"))]
    note = "Of the log-odds that the scores stand for, on pairs it has not seen, with 95% bars."
    return [reliability(bins, note)] if bins else []


def reliability(found: Sequence[tuple[Any, str]], note: str) -> Panel:
    """Share right against the predicted probability, from bins of pairs and a colour each."""
    curves = []
    for given, colour in found:
        bins = [part for part in given or [] if None not in map(known, part.values())]
        most = max((part["pairs"] for part in bins), default=1.0)
        spread = [_WIDE * (part["right"] * (1 - part["right"]) / part["pairs"]) ** 0.5 for part in bins]
        sizes = [10 + 30 * part["pairs"] / most for part in bins]
        predicted, right = [part["predicted"] for part in bins], [part["right"] for part in bins]
        curves.append(Curve(predicted, right, colour, sizes=sizes, errors=spread))
    return Panel(
        "Reliability",
        f"How sure the reward model is (across) against how often it is right (up). {note} Healthy: on the diagonal; "
        "below it, it is surer than it should be.",
        curves,
        x_label="predicted probability",
        percent=True,
        diagonal=True,
    )


def _by_value(found: Sequence[Drawn], key: str, title: str, note: str, x_label: str) -> Panel:
    curves = []
    for one, colour in found:
        bins = [part for part in dig(one, key) or [] if part["accuracy"] is not None]
        middles, right = [part["mean"] for part in bins], [part["accuracy"] for part in bins]
        bars = [(part["interval"][1] - part["interval"][0]) / 2 for part in bins]
        curves.append(Curve(middles, right, colour, marker="o", errors=bars))
    return Panel(title, note, curves, [Level(0.5, "a coin’s")], x_label=x_label, percent=True)


def _length(found: Sequence[Drawn]) -> Panel:
    curves = []
    for one, colour in found:
        points = dig(one, "length", "points") or []
        curves.append(Curve([x for x, _ in points], [y for _, y in points], colour, sizes=[5.0] * len(points)))
    return Panel(
        "Score against length",
        "Replies of the data. Healthy: a cloud without a slope, unless people prefer length.",
        curves,
        x_label="characters",
    )


def _replies(found: Any, colour: str) -> Panel:
    """Each kind of reply on a line: the middle half of its scores, and the median."""
    groups = (dig(found, "replies") or [])[::-1]  # the first one on top
    curves = []
    for at, group in enumerate(groups):
        low, median, high = group["quartiles"]
        shade = "ink" if group["kind"] == "real" else "muted" if group["kind"] == "off" else colour
        curves += [Curve([low, high], [at, at], shade), Curve([median], [at], shade, sizes=[34.0])]
    if groups:
        middle = groups[-1]["quartiles"][1]
        curves.append(Curve([middle, middle], [-0.4, len(groups) - 0.6], "ink", "dotted"))
    return Panel(
        "Scores of real replies and of probes",
        "The middle half and the median of each, from the same prompts. Healthy: every probe left of the dotted line, "
        "the median real reply.",
        curves,
        x_label="score",
        lines=[group["name"] for group in groups],
    )
