"""`keel feedback sample` and `prioritise`: from a policy to people, and what they are asked first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from keel.cli.feedback import DatabaseOption, Judging, ProjectName, database_at
from keel.feedback.opening import DATABASE

if TYPE_CHECKING:
    from keel.feedback.database import Database
    from keel.feedback.tables import Kind
    from keel.feedback.tasks import Added, NewTask


def sample(
    model: Annotated[str, typer.Argument(help="A policy's directory or hub name.")],
    prompts: Annotated[Path, typer.Argument(help="A file of prompts (.jsonl).")],
    project: Annotated[str, typer.Option(help="Where people find them; made where there is none of that name.")],
    kind: Annotated[Judging | None, typer.Option(help="How a new project is judged; compare unless given.")] = None,
    per_prompt: Annotated[int, typer.Option(min=1, help="Responses a prompt.")] = 2,
    round: Annotated[int, typer.Option(min=1, help="Kept with each judgement: one a policy, say.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy, and says the same each time.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same responses.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    database: DatabaseOption = DATABASE,
) -> None:
    """Let a policy respond, and put the responses before people. Said twice, it asks nobody twice.

    A project that compares gets a task for each two different responses to a prompt, one that ranks or rates one for
    all of them, one that reviews one for each.

    **Example:** `keel feedback sample runs/demo/ppo/model prompts.jsonl --project talk --per-prompt 4 --round 2`
    """
    from keel.config.data import DataConfig
    from keel.config.sampling import SamplingConfig
    from keel.data.load import load_prompts
    from keel.errors import UserError
    from keel.inputs import hash_model
    from keel.schema import Sampled

    rows = load_prompts(DataConfig(path=str(prompts), validation=0.0)).train
    if not rows:
        raise UserError(f"{prompts} holds no prompt that can be used")
    version = hash_model(model)
    with database_at(database, new=True) as store:
        from keel.feedback.sampled import open_project, tasks_of

        wanted = cast("Kind | None", kind and kind.value)
        with store.reading() as session:
            there = open_project(session, project, wanted, None)
            judging = there.kind if there else wanted or "compare"
        _require_tasks(judging, per_prompt)

        from keel.build import generate_responses  # torch: no sooner than a mistake is named

        sampling = SamplingConfig(max_new_tokens=max_new_tokens, temperature=temperature)
        drawn = generate_responses(model, rows, sampling, samples=per_prompt, seed=seed, device=device)
        groups = [drawn[start : start + per_prompt] for start in range(0, len(drawn), per_prompt)]
        sampled = [
            Sampled(row.prompt, tuple(one["response"] for one in group), tuple(one["ended"] for one in group))
            for row, group in zip(rows, groups, strict=True)
        ]
        tasks = tasks_of(judging, sampled, round=round, policy_version=version)
        if not tasks:
            raise UserError(f"the {per_prompt} responses to each prompt are identical; raise --temperature")
        added, name = _put(store, project, judging, tasks)
        if there is None:
            print(f"The project {name} is new; people find it by keel feedback serve --database {store}")
    print(f"{added.in_words(name)}: round {round}, policy {version[:12]}")


def _require_tasks(judging: Kind, per_prompt: int) -> None:
    """Raises UserError where so many responses to a prompt make no task."""
    from keel.errors import UserError
    from keel.feedback.answers import RESPONSES

    least, most = RESPONSES[judging]
    if per_prompt < least:
        raise UserError(f"to {judging}, people need {least} responses to a prompt; raise --per-prompt {per_prompt}")
    if least < most < per_prompt:  # else each `least` of them are a task
        raise UserError(f"people {judging} at most {most} responses to a prompt; lower --per-prompt {per_prompt}")


def _put(store: Database, project: str, kind: Kind, tasks: Sequence[NewTask]) -> tuple[Added, str]:
    """Into the project of that name, and its name. Raises UserError, once they are in a file, where that cannot be."""
    from keel.data.write import write_rows
    from keel.errors import UserError
    from keel.feedback.refused import for_the_terminal
    from keel.feedback.sampled import project_for
    from keel.feedback.tasks import add_tasks
    from keel.runs.files import written

    try:
        with for_the_terminal(), store.for_the_terminal(), store.writing() as session:
            made = project_for(session, project, kind, None, now=time.time())
            return add_tasks(session, made, tasks, now=time.time()), made.name
    except UserError as error:
        first = tasks[0]
        file = Path(f"sampled-{str(first.batch)[:12]}.jsonl")
        with written(file):
            write_rows(file, map(_row, tasks))
        read = f"import PROJECT {file} --kind {kind} --round {first.round} --policy-version {first.policy_version}"
        raise UserError(f"{error}; what was sampled is not lost: `keel feedback {read}` reads it") from None


def _row(task: NewTask) -> dict[str, Any]:
    """As `keel feedback import` reads it."""
    from keel.feedback.tasks import as_kept

    texts = [response.text for response in task.responses]
    said = {"responses": texts} if len(texts) > 1 else {"response": texts[0]}
    return {"prompt": as_kept(task.prompt), **said}


def prioritise(
    project: ProjectName,
    reward: Annotated[str, typer.Option(help="A reward model or an ensemble: a directory or hub name.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    database: DatabaseOption = DATABASE,
) -> None:
    """Have people judge first what tells a reward model most.

    Of an ensemble that is where its members contradict each other, of a single model where it is closest to a toss.
    It holds for the tasks that are open now; say it again when the reward model was trained on more.

    **Example:** `keel feedback prioritise talk --reward runs/demo/reward/model`
    """
    with database_at(database) as store:
        from keel.feedback.priorities import open_tasks, set_priorities
        from keel.feedback.projects import find_project
        from keel.feedback.sampled import as_sampled
        from keel.feedback.words import counted

        with store.reading() as session:
            tasks = open_tasks(session, find_project(session, project))
            asked = {task.id: as_sampled(task) for task in tasks}
        if not asked:
            print(f"Nothing in {project} is open.")
            return

        from keel.build.doubt import doubts  # torch: no sooner than a mistake is named

        found = doubts(reward, list(asked.values()), device=device, say=print)
        with store.writing() as session:
            set_priorities(session, find_project(session, project), dict(zip(asked, found, strict=True)))
    tells = f"a label tells {max(found):.3f} to {min(found):.3f} nats"
    print(f"{counted(len(asked), 'open task')} of {project} in order: {tells}")
