"""`keel feedback import`, `withdraw`, `export`, `quality`, `backup`, `restore`: into a database and out of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from keel.cli.data import FieldOption, Files, Layout, LayoutOption, MapOption, OutcomeOption, refuse_out, sources_of
from keel.cli.feedback import DatabaseOption, Judging, ProjectName, database_at
from keel.feedback.opening import DATABASE

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from keel.feedback.contents import Import
    from keel.feedback.export import What
    from keel.feedback.projects import Settings
    from keel.feedback.tables import Project, Purpose

ForceOption = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def import_files(
    project: ProjectName,
    files: Files,
    kind: Annotated[Judging | None, typer.Option(help="How a new project is judged.")] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="The project's settings, if it is new; else its new ones.")
    ] = None,
    round: Annotated[int, typer.Option(min=1, help="The round that the tasks belong to.")] = 1,
    gold: Annotated[bool, typer.Option("--gold", help="What the rows say is right, and checks people.")] = False,
    practice: Annotated[
        bool, typer.Option("--practice", help="What the rows say is right, and teaches people.")
    ] = False,
    policy_version: Annotated[str | None, typer.Option(help="Which policy the responses are of.")] = None,
    layout: LayoutOption = Layout.AUTO,
    field: FieldOption = None,
    outcome: OutcomeOption = None,
    map: MapOption = None,
    database: DatabaseOption = DATABASE,
) -> None:
    """Put tasks into a project, made if it is new. Files read twice make no task twice.

    Rows that are no task are left out and named; where a file cannot be read to its end, nothing is put in.

    Rows have a prompt and responses, or chosen and rejected, or one response. Where there are more responses than a
    task takes, each two of them (compare) or each one (review) are a task.

    **Example:** `keel feedback import helpful pairs.jsonl --kind compare --database feedback.db`
    """
    from keel.cli.console import printable
    from keel.feedback.importing import Meant, put_tasks, read_tasks

    if gold and practice:
        raise typer.BadParameter("give either --gold or --practice")
    purpose: Purpose = "gold" if gold else "practice" if practice else "label"
    sources = sources_of(files, layout, field, outcome, map)
    given = None if settings is None else _read_settings(settings)
    with database_at(database, new=True) as store:
        with store.reading() as session:
            to_be = _project_to_be(session, project, kind, given)
        meant = Meant(purpose, round, policy_version)
        with read_tasks(to_be, sources, meant, now=time.time()) as read, store.writing() as session:
            done = put_tasks(session, _project(session, to_be, given), read)
    for line in done.in_words(project):
        typer.echo(printable(line))


def withdraw(
    project: ProjectName,
    number: Annotated[
        int | None, typer.Argument(metavar="IMPORT", help="Its number; without one all are listed.")
    ] = None,
    put_back: Annotated[bool, typer.Option("--put-back", help="Give its tasks to people again.")] = False,
    database: DatabaseOption = DATABASE,
) -> None:
    """Withdraw what was put in by mistake: nobody is given its tasks, and they count nowhere. What was said stays.

    **Example:** `keel feedback withdraw helpful 17 --database feedback.db`
    """
    from keel.feedback.contents import imports, set_withdrawn
    from keel.feedback.projects import find_project
    from keel.feedback.words import counted

    if number is None and put_back:
        raise typer.BadParameter("--put-back needs the number of an import")
    with database_at(database) as store, store.reading() if number is None else store.writing() as session:
        found = find_project(session, project)
        if number is None:
            _list(imports(session, found))
            return
        done = set_withdrawn(session, found, number, not put_back, now=time.time())
    are, them = ("is", "it") if done.tasks == 1 else ("are", "them")
    what = f"{are} put back" if put_back else f"{are} withdrawn; --put-back gives {them} to people again"
    typer.echo(f"{counted(done.tasks, 'task')} of {project}, with {counted(done.votes, 'vote')}, {what}")


def export(
    project: ProjectName,
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl")],
    round: Annotated[int | None, typer.Option(min=1, help="Of this round alone.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Gold, practice, hidden repeats and what was withdrawn too, each marked.")
    ] = False,
    ties: Annotated[
        Path | None, typer.Option(help="Where comparisons go that call neither better, as rankings.")
    ] = None,
    demonstrations: Annotated[Path | None, typer.Option(help="Where accepted and edited responses go.")] = None,
    anonymous: Annotated[bool, typer.Option("--anonymous", help="Stable pseudonyms in place of names.")] = False,
    force: ForceOption = False,
    database: DatabaseOption = DATABASE,
) -> None:
    """Write what people said as comparisons, rankings, ratings or labels, for `keel reward` and `keel data audit`.

    **Example:** `keel feedback export helpful comparisons.jsonl --database feedback.db`
    """
    from keel.errors import UserError
    from keel.feedback.export import Wanted, by_name, by_pseudonym, export_files, require_some
    from keel.feedback.projects import find_project
    from keel.runs.files import written

    outs: dict[What, Path] = {"judgements": out}
    outs |= {"ties": ties} if ties else {}
    outs |= {"demonstrations": demonstrations} if demonstrations else {}
    options = {"judgements": "OUT", "ties": "--ties", "demonstrations": "--demonstrations"}
    for what, path in outs.items():
        refuse_out(options[what], path, force)
        same = next((other for other, earlier in outs.items() if earlier.resolve() == path.resolve()), what)
        if same != what:
            raise UserError(f"{options[what]} {path} is the file of {options[same]} too; name another one")
    with database_at(database) as store:
        with store.reading() as session:
            require_some(session, find_project(session, project), outs, round)
        names = by_pseudonym(store) if anonymous else by_name
        with store.snapshot() as session, written(out):
            counts = export_files(session, find_project(session, project), outs, Wanted(round, everything), names)
    for what, path in outs.items():
        typer.echo(f"{counts[what]:,} {what} written to {path}")
    for what in sorted(counts.keys() - outs.keys()):
        typer.echo(f"{counts[what]:,} {what} left out; {options[what]} FILE.jsonl writes them")


def quality(project: ProjectName, database: DatabaseOption = DATABASE) -> None:
    """How far people agree, and what is known of each annotator.

    **Example:** `keel feedback quality helpful --database feedback.db`
    """
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    from keel.cli.console import printable
    from keel.feedback.projects import find_project
    from keel.feedback.quality import CHECKS, HEADER, quality, summary, table

    with database_at(database) as store, store.snapshot() as session:
        found = quality(session, find_project(session, project))
    console = Console()
    console.print(summary(found), markup=False, highlight=False, soft_wrap=True)
    lines, columns = table(found), range(len(HEADER))
    for part in (columns[1 : CHECKS.start], columns[CHECKS]):  # all in one are wider than a terminal
        known = [column for column in part if any(line[column] for line in lines)]
        if not known:
            continue
        name = Column(HEADER[0], overflow="fold")
        shown = Table(name, *(Column(HEADER[column], no_wrap=True) for column in known))
        for line in lines:
            shown.add_row(*(Text(printable(line[column])) for column in (0, *known)))
        console.print(shown)


def backup(
    out: Annotated[Path, typer.Argument(metavar="OUT.gz", help="Where the backup goes.")],
    force: ForceOption = False,
    database: DatabaseOption = DATABASE,
) -> None:
    """Write the whole database to one file, while the server runs or not. It holds secrets: only you may read it.

    **Example:** `keel feedback backup feedback-monday.gz --database feedback.db`
    """
    from keel.errors import UserError
    from keel.feedback.backup import backup
    from keel.runs.files import written

    if out.exists() and not force:
        raise UserError(f"{out} is there already; give --force to replace it")
    with database_at(database) as store, written(out):
        counts = backup(store, out, now=time.time())
    typer.echo(f"{_rows(counts)}, written to {out}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="FILE.gz", help="What `keel feedback backup` wrote.")],
    database: DatabaseOption,
) -> None:
    """Fill an empty database, SQLite or PostgreSQL, from a backup of either: all of it, or nothing.

    **Example:** `keel feedback restore feedback-monday.gz --database postgresql://keel@localhost/keel`
    """
    from keel.feedback.backup import restore

    with database_at(database, new=True) as store:
        counts = restore(store, source)
        typer.echo(f"{_rows(counts)}, are in {store}")


def _rows(counts: Mapping[str, int]) -> str:
    from keel.feedback.words import counted

    return f"{counted(sum(counts.values()), 'row')}, of them {counted(counts.get('judgements', 0), 'judgement')}"


def _read_settings(file: Path) -> Settings:
    from keel.config.yaml_text import read_yaml
    from keel.errors import UserError
    from keel.feedback.projects import read_settings
    from keel.feedback.refused import Refused

    try:
        return read_settings(read_yaml(file.read_text(encoding="utf-8")) or {})
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    except Refused as refused:
        raise UserError(f"{file}: {refused}") from None


def _project_to_be(session: Session, name: str, kind: Judging | None, given: Settings | None) -> Project:
    """The project as it is, or as it will be made or changed; that of no session."""
    from keel.errors import UserError
    from keel.feedback.projects import Settings, free_name, settings_of
    from keel.feedback.tables import Project

    found = _found(session, name)
    if found is None:
        if kind is None:
            raise UserError(f"there is no project {name}; say how it is judged to make it, such as --kind compare")
        settings = (given or Settings()).model_dump(mode="json")
        return Project(name=free_name(session, name), kind=kind.value, settings=settings)
    if kind is not None and kind.value != found.kind:
        raise UserError(f"{name} is a {found.kind} project, and --kind says {kind.value}; leave it out")
    return Project(name=name, kind=found.kind, settings=(given or settings_of(found)).model_dump(mode="json"))


def _project(session: Session, to_be: Project, given: Settings | None) -> Project:
    """The project of that name, new or not, with the settings that were given."""
    from keel.feedback.projects import add_project, change_settings, settings_of

    found = _found(session, to_be.name)
    if found is None:
        typer.echo(f"The project {to_be.name} is new.")
        return add_project(session, to_be.name, to_be.kind, settings_of(to_be), now=time.time())
    if given is not None:
        change_settings(session, found, given)
    return found


def _found(session: Session, name: str) -> Project | None:
    from sqlalchemy import select

    from keel.feedback.tables import Project

    return session.scalar(select(Project).where(Project.name == name))


def _list(found: Sequence[Import]) -> None:
    """What was put in at once, by the number that withdraws it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from keel.cli.console import one_line

    shown = Table("import", "put in (UTC)", "for", "round", "policy", "tasks", "votes", box=box.SIMPLE_HEAD)
    for one in found:
        when = datetime.fromtimestamp(one.created_at, UTC).strftime("%Y-%m-%d %H:%M")
        purpose = f"{one.purpose}\nwithdrawn" if one.withdrawn_at else one.purpose
        policy = one_line(one.policy_version or "", 12)
        cells = (str(one.number), when, purpose, str(one.round), policy, f"{one.tasks:,}", f"{one.votes:,}")
        shown.add_row(*map(Text, cells))
    Console().print(shown)
