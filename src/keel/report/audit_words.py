"""An audit in words: one line that sums up, its findings, its figures, its annotators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from keel.data.audit.annotators import Person
from keel.data.audit.audit import Audit
from keel.data.audit.faults import Fault, Place
from keel.data.audit.intervals import Estimate, Rate
from keel.report.numbers import ABSENT, count, number, percent

PEOPLE = ("annotator", "votes", "agrees with the others", "takes the first", "takes the longer", "stands out")
_MOST_PEOPLE = 20


@dataclass(frozen=True)
class Line:
    """A finding or a figure: its name, its value, the rows it is about, what it means."""

    name: str
    value: str
    which: str
    meaning: str


def summary(audit: Audit) -> str:
    """How much was read."""
    checks, sources = audit.gathered.checks, audit.gathered.sources
    rows = sum(check.total if check.rows is None else check.rows for check in checks)
    rated = len(audit.gathered.ratings.prompt)
    splits = audit.splits
    prompts = splits.train + splits.held_out - splits.shared_prompts
    said = f"{count(rated)} ratings, which stand for " if rated else ""
    names = ", ".join(source.name + (" (held out)" if source.held_out else "") for source in sources)
    pairs = f"{count(len(audit.gathered.labels))} comparisons on {count(prompts)} prompts"
    return f"{names}: {count(rows)} rows, {said}{pairs}"


def findings(audit: Audit, rows: int) -> list[Line]:
    """What was found, with up to `rows` rows each; of what was not found there is no line."""
    return [
        Line(one.fault.value, count(len(one)), _which(audit, one.places(audit.gathered), rows), one.fault.sentence)
        for one in audit.found
        if len(one)
    ]


def unfit(audit: Audit) -> set[str]:
    """The names of the findings that `--clean` leaves out."""
    return {fault.value for fault in Fault if fault.unfit(audit.splits.by_file)}


def _which(audit: Audit, places: Iterator[Place], rows: int) -> str:
    single = len(audit.gathered.files) == 1
    distinct = dict.fromkeys((place.file, place.row) for place in places)
    found: dict[str, list[str]] = {}
    for file, row in islice(distinct, rows):
        found.setdefault(file, []).append(str(row))
    more = ", …" if len(distinct) > rows else ""
    return "; ".join(("" if single else f"{Path(file).name}: ") + ", ".join(own) for file, own in found.items()) + more


def figures(audit: Audit) -> list[Line]:
    """Every figure that is known."""
    lines = [*_order(audit), *_length(audit), *_position(audit), *_balance(audit), *_splits(audit), *_agreement(audit)]
    return [line for line in lines if line.value != ABSENT]


def _order(audit: Audit) -> Iterator[Line]:
    order = audit.order
    if not order.prompts:
        yield Line("agrees with an order", "yes", "", "Neither contradictions nor cycles: a utility explains all.")
        return
    yield Line("pairs labelled both ways", count(audit.pairs_contradicted), "", "A over B, and B over A.")
    yield Line("prompts without an order", count(order.prompts), "", "No utility explains all labels of these prompts.")
    three = "" if order.triangles is None else f"{count(order.triangles)} cycles of three replies."
    yield Line("prompts with a cycle", count(order.cyclic), "", f"A over B over C over A, or longer. {three}".strip())
    least = count(order.least_low)
    if order.least_low != order.least_high:
        least += f"–{count(order.least_high)}"
    yield Line("least labels to drop", least, "", "So that the rest agree with an order of each prompt's replies.")


def _length(audit: Audit) -> Iterator[Line]:
    length = audit.length
    equal = f"; pairs of equal lengths ({count(length.equal)}) apart" if length.equal else ""
    yield Line("longer wins", rate(length.longer), "", f"In characters{equal}. 50% is no bias of length.")
    if length.slope is not None:
        yield Line(
            "coefficient of log length",
            f"{number(length.slope.value)} ± {number(length.slope.standard_error)}",
            "",
            f"± a standard error. A reply twice as long wins {percent(length.doubled)} by that alone.",
        )


def _position(audit: Audit) -> Iterator[Line]:
    position = audit.position
    meaning = "As the replies stand in the row. 50% is no bias of position."
    if position.sorted:
        meaning = "The rows list the better reply first or last, so no order that was shown is known."
    yield Line("first wins", rate(position.first), "", meaning)


def _balance(audit: Audit) -> Iterator[Line]:
    balance = audit.balance
    if 0 < len(balance.numbers) <= 30:
        each = ", ".join(f"{value:g}: {count(times)}" for value, times in balance.numbers.items())
        yield Line("numbers given", each, "", "How often each rating was given; of labels 1 is accepted.")
    if audit.gathered.not_compared:
        left = count(audit.gathered.not_compared)
        yield Line("ratings not compared", left, "", "Those after the first 200 of a prompt.")
    least, median, most = balance.labels_per_prompt
    yield Line("labels a prompt", f"{least}, {median:g}, {most}", "", "Least, median, most.")
    if balance.empty_judged:
        yield Line("empty replies, judged", count(balance.empty_judged), "", "A policy may say nothing; they are kept.")
    if balance.cut_chosen or balance.cut_rejected:
        both = f"{percent(balance.cut_chosen, 1)} / {percent(balance.cut_rejected, 1)}"
        yield Line("cut off, perhaps", both, "", "Chosen and rejected replies that did not end, or seem not to.")
    if balance.noise_ceiling is not None:
        meaning = "The best accuracy on these labels: they come with the probability they were drawn with."
        yield Line("noise allows", percent(balance.noise_ceiling, 1), "", meaning)


def _splits(audit: Audit) -> Iterator[Line]:
    splits = audit.splits
    how = "by file" if splits.by_file else "by the prompt's hash"
    both = f"{count(splits.train)} / {count(splits.held_out)}"
    yield Line("prompts trained on / held out", both, "", f"Split {how}.")
    if splits.held_out:
        yield Line("prompts on both sides", count(splits.shared_prompts), "", "Equal but for white space and case.")
        more = f" {count(splits.unsure)} training prompts have too many like them to tell." if splits.unsure else ""
        near = f"{count(splits.near_train)} / {count(splits.near_held_out)}"
        examples = ", ".join(_pair(audit, near.train, near.held_out) for near in splits.examples[:3])
        meaning = f"Four fifths of their word pairs or more in common with a prompt of the other side.{more}"
        yield Line("near-duplicates across", near, examples, meaning)
    sources = audit.gathered.sources
    for (one, other), prompts in splits.between.items():
        yield Line("prompts in two files", count(prompts), "", f"{sources[one].name} and {sources[other].name}.")


def _pair(audit: Audit, train: int, held_out: int) -> str:
    row = audit.gathered.prompts.row
    return f"{row[train]} ~ {row[held_out]}"


def _agreement(audit: Audit) -> Iterator[Line]:
    found = audit.annotators
    if not found.people:
        yield Line("annotators", "not named", "", "How far they agree cannot be told; give each label its annotator.")
        return
    yield Line("annotators", count(len(found.people)), "", f"{count(found.votes)} votes on {count(found.pairs)} pairs.")
    votes = ", ".join(f"{votes}: {count(pairs)}" for votes, pairs in found.votes_per_pair.items())
    yield Line("pairs by number of votes", votes, "", "Agreement is computed from those of two votes or more.")
    if found.alpha is None or found.agreement is None or found.ceiling is None:
        return
    yield Line("Krippendorff's α", _estimate(found.alpha, number), "", "1 is full agreement, 0 that of chance.")
    yield Line("two votes agree", _estimate(found.agreement, percent), "", "How often another vote on the pair agrees.")
    low, high = found.ceiling
    both = f"{percent(low, 1)}–{percent(high, 1)}"
    yield Line("ceiling of a reward model", both, "", "The best accuracy on single votes lies between these.")
    names = [person.name for person in found.outlying]
    yield Line("outlying annotators", count(len(names)), ", ".join(names[:5]) + (", …" if len(names) > 5 else ""), "")


def _estimate(estimate: Estimate, form: object) -> str:
    assert callable(form)
    low, high = estimate.interval
    return f"{form(estimate.value)} [{form(low)}, {form(high)}]"


def rate(found: Rate) -> str:
    """63.2% [60.1, 66.2] of 1,234; a dash where there is nothing to count."""
    if not found.total:
        return ABSENT
    low, high = (number(100 * bound, 1) for bound in found.interval)
    return f"{percent(found.share, 1)} [{low}, {high}] of {count(found.total)}"


def people(audit: Audit) -> list[tuple[str, ...]]:
    """Those who stand out, then those with most votes; a row has the columns of PEOPLE."""
    found = audit.annotators
    shown = [*found.outlying, *(person for person in found.people if not person.remarks)]
    return [_person(person) for person in shown[:_MOST_PEOPLE]]


def _person(person: Person) -> tuple[str, ...]:
    rates: Sequence[Rate] = (person.agreement, person.first, person.longer)
    return (person.name, count(person.votes), *map(rate, rates), ", ".join(person.remarks))
