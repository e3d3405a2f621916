"""What an annotator is shown, and what they said, with the responses numbered as that person saw them.

Nothing here gives away a response's position, its source or the policy's version, nor that a task is gold or a repeat.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, SkipValidation

from keel.feedback.answers import Answer, Compared, Ranked, Rated, Reviewed, kept_answer
from keel.feedback.judgements import LONGEST_COMMENT
from keel.feedback.projects import Criterion, Settings, settings_of
from keel.feedback.render import markdown, turns
from keel.feedback.tables import Assignment, Judgement, Kind, Project, Verdict
from keel.feedback.web.given import Body

Criteria = dict[str, int | str | None]
_AnswerField = Field(description="in the project's way of judging; responses are numbered from 0 as they are shown")
_QUESTIONS: dict[Kind, str] = {
    "compare": "Which response is better?",
    "rank": "Order the responses from best to worst.",
    "rate": "How good is each response?",
    "review": "Is this response good as it is?",
}


class Way(BaseModel):
    """What is the same for every task of a project."""

    project: int
    name: str
    kind: Kind
    question: str
    guidelines: str = Field(description="HTML")
    criteria: tuple[Criterion, ...]
    scale: tuple[int, int] = Field(description="lowest and highest rating")
    lease_seconds: float
    version: str = Field(description="another one where the question, the guidelines, the criteria or the scale are")


class Passage(BaseModel):
    """A text as it is, and as safe HTML."""

    text: str
    html: str


class PromptTurn(Passage):
    role: str | None = Field(description="who speaks, in a chat")


class Said(BaseModel):
    """What was said of a task."""

    verdict: Verdict
    answer: Annotated[Answer | None, _AnswerField]
    criteria: Criteria
    comment: str
    duration: float = Field(description="seconds that it was before the person's eyes")


class Shown(BaseModel):
    """A task as one person sees it."""

    assignment: str
    practice: bool
    seconds_left: float = Field(description="until it goes back; less than 0 where its time is over")
    prompt: list[PromptTurn]
    responses: list[Passage]
    said: Said | None = Field(description="what this person said of it, where that stands")


class NewJudgement(Body):
    """What a person says of a task. Which answer fits is known once the project is: it is checked then."""

    assignment: str = Field(pattern="^[0-9a-f]{32}$")
    verdict: Verdict
    answer: Annotated[SkipValidation[Answer | None], _AnswerField] = None
    criteria: Criteria = Field(default_factory=dict, description="a response's number or null, or one of the options")
    comment: str = Field("", max_length=LONGEST_COMMENT)
    duration: float = Field(0.0, ge=0, le=86400, allow_inf_nan=False, description="seconds before the person's eyes")


class Outcome(BaseModel):
    """How an answer to a practice task compares with what was expected; `why` is Markdown until it is `with_html`."""

    agrees: bool
    expected: str = Field(description="in words")
    why: str = Field(description="HTML; empty where nobody wrote it down")


class Kept(BaseModel):
    """The judgement is on the disk."""

    key: str
    verdict: Verdict
    practice: Outcome | None


def way_of(project: Project) -> Way:
    """With the guidelines rendered: to be called when the transaction is over."""
    settings = settings_of(project)
    return Way(
        project=project.id,
        name=project.name,
        kind=project.kind,
        question=settings.question or _QUESTIONS[project.kind],
        guidelines=markdown(settings.guidelines),
        criteria=settings.criteria,
        scale=settings.scale,
        lease_seconds=settings.lease_seconds,
        version=version_of(settings),
    )


def version_of(settings: Settings) -> str:
    """A digest of what people are shown of a project's settings beside every task."""
    seen = settings.model_dump_json(include={"question", "guidelines", "criteria", "scale"})
    return hashlib.sha256(seen.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Held:
    """All that is needed to show an assignment, read from the database; rendering may take a while, and comes later."""

    assignment: str
    practice: bool
    expires_at: float
    prompt: str | list[dict[str, str]]
    responses: list[str]
    """As they are shown, one after the other."""
    said: Said | None


def held(assignment: Assignment, judgement: Judgement | None) -> Held:
    """`judgement` is the one that stands."""
    task = assignment.task
    return Held(
        assignment=assignment.id,
        practice=task.purpose == "practice",
        expires_at=assignment.expires_at,
        prompt=task.prompt,
        responses=in_order(assignment),
        said=None if judgement is None else said_as_shown(assignment.project, judgement),
    )


def in_order(assignment: Assignment) -> list[str]:
    """The responses' texts as they are shown."""
    texts = {one.position: one.text for one in assignment.task.responses}
    return [texts[position] for position in assignment.order]


def shown(held: Held, *, now: float) -> Shown:
    """With its texts rendered: to be called when the transaction is over."""
    return Shown(
        assignment=held.assignment,
        practice=held.practice,
        seconds_left=held.expires_at - now,
        prompt=[PromptTurn(role=one.role, text=one.text, html=one.html) for one in turns(held.prompt)],
        responses=[Passage(text=text, html=markdown(text)) for text in held.responses],
        said=held.said,
    )


def said_as_shown(project: Project, judgement: Judgement) -> Said:
    seen_at = _seen_at(judgement.order)
    answer = None if judgement.answer is None else kept_answer(project.kind, judgement.answer).placed(seen_at)
    criteria = {name: seen_at[value] if isinstance(value, int) else value for name, value in judgement.criteria.items()}
    return Said(
        verdict=judgement.verdict,
        answer=answer,
        criteria=criteria,
        comment=judgement.comment,
        duration=judgement.duration,
    )


def with_html(kept: Kept) -> Kept:
    """With its Markdown rendered: to be called when the transaction is over."""
    if kept.practice is not None:
        kept.practice.why = markdown(kept.practice.why)
    return kept


def kept(judgement: Judgement) -> Kept:
    return Kept(key=judgement.key, verdict=judgement.verdict, practice=_outcome(judgement))


def in_words(verdict: Verdict, answer: Answer | None) -> str:
    """What was said of a task; `answer` may be in either numbering, and the letters follow it."""
    if answer is not None:
        return answer_in_words(answer)
    return {"skip": "skipped", "problem": "reported a problem"}.get(verdict, verdict)


def answer_in_words(answer: Answer) -> str:
    match answer:
        case Compared(best=int(best), strength=strength):
            return f"{_letter(best)} {'slightly ' if strength == 'slight' else ''}better"
        case Compared(strength=strength):
            return "a tie" if strength == "tie" else "both bad"
        case Ranked(ranks=ranks):
            tiers = [[_letter(k) for k, rank in enumerate(ranks) if rank == place] for place in sorted(set(ranks))]
            return " > ".join(" = ".join(tier) for tier in tiers)
        case Rated(ratings=(rating,)):
            return f"{rating}"
        case Rated(ratings=ratings):
            return ", ".join(f"{_letter(k)} {rating}" for k, rating in enumerate(ratings))
        case Reviewed(accepted=True):
            return "accepted"
        case Reviewed(edited=edited):
            return "rejected" if edited is None else "rejected, with a replacement"


def _letter(place: int) -> str:
    return "ABCDEFGHI"[place]


def _outcome(judgement: Judgement) -> Outcome | None:
    assignment = judgement.assignment
    task, kind = assignment.task, assignment.project.kind
    if task.purpose != "practice" or task.expected is None or judgement.answer is None:
        return None
    expected: Any = kept_answer(kind, task.expected)
    why = task.row.get("why")
    return Outcome(
        agrees=kept_answer(kind, judgement.answer).agrees(expected),
        expected=answer_in_words(expected.placed(_seen_at(assignment.order))),
        why=why if isinstance(why, str) else "",
    )


def _seen_at(order: list[int]) -> list[int]:
    """The place where each response was shown, by its position."""
    return sorted(range(len(order)), key=order.__getitem__)
