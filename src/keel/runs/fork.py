"""Starting a stage from the checkpoint of another run's, with other settings; that run stays as it is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keel.errors import UserError
from keel.runs import files
from keel.runs.identity import Identity, differences, hash_file
from keel.runs.layout import CHECKPOINTS, FORKED, IDENTITY, METRICS, SAMPLES, STAGES

_INPUT = "fork"  # the checkpoint among the inputs of a forked stage's identity
_TOKENIZER = "tokenizer"  # trained before the first step; the weights are for its ids
_SCORES = re.compile(r"rewards\b|input (reward |template of (?!evaluate\.judge))")
_HELD_OUT = re.compile(
    r"judge\b|ppo\.(prompts|sampling|reference|evaluate\.(prompts|count|utility))\b|seed$|model\.chat_template$|"
    r"input (ppo\.|evaluate\.judge$|utility$|reference$|chat_template$|template of evaluate\.judge$)"
)
_WEIGHTS = ("model.tune", "model.lora", "ppo.critic")  # settings that decide which weights train


@dataclass(frozen=True)
class ForkPoint:
    """A stage of an earlier run, and the step of one of its checkpoints (None: the newest)."""

    run: Path
    stage: str
    step: int | None

    @classmethod
    def parse(cls, text: str) -> ForkPoint:
        """Read `OLD/STAGE` or `OLD/STAGE@STEP`. Raises UserError if it is neither."""
        place, _, step = text.partition("@")
        path = Path(place)
        if path.name not in STAGES or path.parent == Path() or ("@" in text and not step.isdecimal()):
            raise UserError(
                f"--fork {text} should look like runs/old/ppo@40, or runs/old/ppo for the newest checkpoint."
            )
        return cls(path.parent, path.name, int(step) if step else None)

    @property
    def path(self) -> Path:
        return self.run / self.stage

    def checkpoint(self) -> Path:
        """The checkpoint's directory. Raises UserError, naming the steps that are kept, if there is none."""
        from keel.runs import checkpoint

        kept = checkpoint.steps(self.path / CHECKPOINTS)
        if not kept:
            raise UserError(f"--fork: {self.path} has no checkpoint; name a stage sft, reward or ppo that was begun.")
        if self.step is not None and self.step not in kept:
            listed = ", ".join(map(str, kept))
            raise UserError(f"--fork: {self.path} keeps no checkpoint of step {self.step}; it has {listed}.")
        return checkpoint.step_path(self.path / CHECKPOINTS, kept[-1] if self.step is None else self.step)

    def require_same_weights(self, config: Mapping[str, Any]) -> None:
        """Raises UserError where the settings `config` (as in `Identity`) train other weights than the stage's did."""
        if not (self.path / IDENTITY).exists():
            return  # nothing was begun there: `checkpoint` says so
        was = _of_weights(Identity.read(self.path).config)
        decided = {_root(key) for key in was}  # tuning plays no part in the supervised stage of a model from nothing
        now = {key: value for key, value in _of_weights(config).items() if _root(key) in decided}
        changed = differences(Identity(was, {}), Identity(now, {}))
        if changed:
            raise UserError(
                f"--fork: {changed[0]} changes which weights train, and the checkpoints of {self.path} hold the "
                "others; leave that key as it was there, or leave --fork out and train the stage from its start."
            )


@dataclass(frozen=True)
class Fork:
    """Where a forked stage comes from; `changed` says how its settings and inputs differ, a sentence each."""

    source: str
    step: int
    sha256: str  # of the checkpoint's manifest, which has those of its files
    changed: tuple[str, ...]
    measured_since: int | None = None  # the step of the last fork, this or an earlier one, that `measured_otherwise`

    @classmethod
    def read(cls, stage: Path) -> Fork | None:
        """The provenance of the stage in that directory, if it is forked."""
        known = files.read_json(stage / FORKED)
        return None if known is None else cls(**{**known, "changed": tuple(known["changed"])})

    @property
    def changed_keys(self) -> set[str]:
        return _keys(self.changed)

    def mark(self, identity: Identity) -> Identity:
        """The identity with the checkpoint as one more input."""
        return Identity(identity.config, {**identity.inputs, _INPUT: self.sha256})

    def comes_from(self, point: ForkPoint) -> bool:
        """Whether `point` names this origin."""
        return Path(self.source) == point.path.resolve() and point.step in (None, self.step)


def scored_otherwise(changed: Iterable[str]) -> bool:
    """Whether one of the changed keys decides what a response is paid: scores before and after are of two scales."""
    return any(_SCORES.match(key) for key in changed)


def measured_otherwise(changed: Iterable[str]) -> bool:
    """Whether what an evaluation on held-out prompts finds cannot be compared with what one found before the change:
    by another reward, judge or utility, or of other responses though the policy be the same.
    """
    changed = set(changed)
    return scored_otherwise(changed) or any(_HELD_OUT.match(key) for key in changed)


def measured_since(stage: Path) -> int | None:
    """The iteration after which the held-out scores in that directory's lines are of one scale; None: all are."""
    fork = Fork.read(stage)
    return None if fork is None else fork.measured_since


def start(point: ForkPoint, path: Path, identity: Identity) -> Fork:
    """Make the stage in `path` as it was at `point`: checkpoint, logs (to be cut back), tokenizer. All or nothing.

    The best checkpoint so far comes along if it is still kept. Raises UserError if a checkpoint is not whole, or
    `identity` trains other weights.
    """
    from keel.runs import checkpoint

    source = point.checkpoint()
    point.require_same_weights(identity.config)
    beside = path.with_name(f".{path.name}.fork")
    shutil.rmtree(beside, ignore_errors=True)
    copies = beside / CHECKPOINTS
    shutil.copytree(source, copies / source.name)
    problem = checkpoint.verify(copies / source.name)
    if problem is not None:
        raise UserError(f"--fork: checkpoint {source} is not whole ({problem}); take another step.")
    snapshot = checkpoint.load(copies / source.name)
    best = snapshot.state["best"]
    if best is not None and best != snapshot.step and best in checkpoint.steps(source.parent):
        name = checkpoint.step_path(source.parent, best).name
        shutil.copytree(source.parent / name, copies / name)
    for name in (METRICS, SAMPLES):
        if (point.path / name).exists():
            shutil.copyfile(point.path / name, beside / name)
    if (point.path / _TOKENIZER).exists():
        shutil.copytree(point.path / _TOKENIZER, beside / _TOKENIZER)
    was = _unmarked(Identity.read(point.path))
    digest = hash_file(copies / source.name / checkpoint.MANIFEST)
    changed = tuple(differences(was, identity))
    since = snapshot.step if measured_otherwise(_keys(changed)) else measured_since(point.path)
    fork = Fork(str(point.path.resolve()), snapshot.step, digest, changed, since)
    files.write_json(beside / FORKED, vars(fork))
    files.write_json(beside / IDENTITY, fork.mark(identity).to_dict())
    files.sync_tree(beside)
    files.move(beside, path)
    return fork


def _keys(changed: Iterable[str]) -> set[str]:
    return {sentence.partition(":")[0] for sentence in changed}


def _root(key: str) -> str | None:
    """Which of `_WEIGHTS` the key is, or lies below."""
    return next((root for root in _WEIGHTS if key == root or key.startswith(f"{root}.")), None)


def _of_weights(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if _root(key) is not None}


def _unmarked(identity: Identity) -> Identity:
    """Without the mark of an earlier fork, which is no setting."""
    return Identity(identity.config, {name: value for name, value in identity.inputs.items() if name != _INPUT})
