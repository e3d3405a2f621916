"""`keel feedback import|export|quality|backup|restore`: what goes into a project and comes out of it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from keel.cli.data import FieldOption, Files, Layout, LayoutOption, MapOption, OutcomeOption

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from keel.feedback.export import What
    from keel.feedback.importing import Imported
    from keel.feedback.projects import Settings
    from keel.feedback.tables import Project

DatabaseOption = Annotated[
    str, typer.Option(envvar="KEEL_FEEDBACK_DATABASE", help="A file, or postgresql://USER:PASSWORD@HOST/NAME.")
]
DATABASE = "keel-feedback.db"
