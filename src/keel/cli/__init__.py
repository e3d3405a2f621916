"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import sys

import typer

from keel.cli.chat import chat
from keel.cli.compare import compare
from keel.cli.data import data_app
from keel.cli.data_audit import audit
from keel.cli.debug import debug_app
from keel.cli.demo import demo
from keel.cli.doctor import doctor
from keel.cli.evaluate import evaluate
from keel.cli.export import export
from keel.cli.feedback import feedback_app
from keel.cli.feedback_people import password
from keel.cli.feedback_projects import backup, import_files, quality, restore, withdraw
from keel.cli.feedback_projects import export as export_feedback
from keel.cli.feedback_sample import prioritise, sample
from keel.cli.generate import generate
from keel.cli.init import init
from keel.cli.report import report
from keel.cli.run import add_stage_commands, run
from keel.cli.schema import schema
from keel.cli.serve import serve
from keel.cli.verify import verify
from keel.cli.watch import watch
from keel.dist.launcher import LOST, USER_ERROR, Dismissed, Fallen, Lost, leads
from keel.errors import UserError

app = typer.Typer(
    name="keel",
    help="Align a language model with what people prefer: sft, collect, reward, direct, ppo, evaluate, report.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(init)
app.command()(doctor)
app.command()(run)
add_stage_commands(app)
app.command()(evaluate)
app.command()(report)
app.command()(watch)
app.command()(generate)
app.command()(chat)
app.command()(serve)
app.command()(export)
app.command()(schema)
app.command()(compare)
app.command()(verify)
data_app.command(no_args_is_help=True)(audit)
app.add_typer(data_app, name="data")
feedback_app.command("import", no_args_is_help=True)(import_files)
feedback_app.command("export", no_args_is_help=True)(export_feedback)
for command in (sample, prioritise, withdraw, quality, backup, restore, password):
    feedback_app.command(no_args_is_help=True)(command)
app.add_typer(feedback_app, name="feedback")
app.add_typer(debug_app, name="debug")


def main() -> None:
    """The console script: a user's mistake is one sentence and exit code 2, never a traceback."""
    try:
        app()
    except Lost as error:
        print(f"keel: {error}", file=sys.stderr)
        sys.exit(LOST)
    except Fallen as error:  # whichever process it is: no other knows why
        print(f"keel: {error}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except UserError as error:
        if leads():
            from keel.cli.console import printable  # rich, where a mistake is to be told

            print(f"keel: {printable(str(error)).replace(chr(10), ' ')}", file=sys.stderr)
        sys.exit(USER_ERROR)
    except Dismissed as error:
        sys.exit(error.code)
