"""The composition root: from a recipe to engines to stages. The only place that knows every part."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from keel.build.conversation import Responder
from keel.build.stages import RUNNERS
from keel.build.workbench import Workbench, load_renderer
from keel.config.recipe import Recipe
from keel.config.sampling import SamplingConfig
from keel.data.held_out import require_held_out
from keel.dist import crew
from keel.dist.launcher import leads
from keel.dist.world import joined, world
from keel.engines.base import DrawKey
from keel.errors import UserError
from keel.inputs import Inputs, stage_identity, stage_inputs
from keel.references import resolve
from keel.runs.callbacks import Callback, Guarded
from keel.runs.files import disk_trouble
from keel.runs.console import Console, SilentConsole
from keel.runs.fork import ForkPoint
from keel.runs.identity import Identity, flatten
from keel.runs.layout import DONE, STAGES
from keel.runs.loggers import make_loggers
from keel.runs.progress import KeptProgress
from keel.runs.run import Run, StageRun
from keel.runs.stage import KEEP_CHECKPOINTS
from keel.schema import Prompt
from keel.seeds import Draws

__all__ = ["generate_responses", "load_renderer", "run_recipe"]


def run_recipe(
    recipe: Recipe,
    out: Path,
    *,
    console: Console,
    only: str | None = None,
    reuse: Path | None = None,
    fresh_from: str | None = None,
    fork: str | None = None,
    extend: bool = False,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Walk the recipe's stages in `out`: finished ones are skipped, an interrupted one goes on where it was.

    `only` runs that one stage (what it needs must be there). For `reuse`, `fresh_from`, `fork` ("OLD/ppo@40") and
    `extend` see `Run.open`. `callbacks` hear beside those of the recipe. Raises UserError for whatever the user can
    mend.
    """
    walk = partial(
        _walk,
        recipe,
        out,
        console=console,
        only=only,
        reuse=reuse,
        fresh_from=fresh_from,
        fork=fork,
        extend=extend,
        callbacks=callbacks,
    )
    parallel = recipe.parallel
    with joined(shard=parallel.shard, offload=parallel.offload, device=recipe.device), crew.scope():
        maker = StageMaker(recipe, console)
        crew.lead(lambda: walk(maker.make))


def _walk(
    recipe: Recipe,
    out: Path,
    make: Callable[[StageRun, Inputs], dict[str, Any]],
    *,
    console: Console,
    only: str | None,
    reuse: Path | None,
    fresh_from: str | None,
    fork: str | None,
    extend: bool,
    callbacks: Sequence[Callback],
) -> None:
    """The walk itself, in the leader alone."""
    content = recipe.model_dump(mode="json")
    point = ForkPoint.parse(fork) if fork is not None else None
    if point is not None and getattr(recipe, point.stage) is None:
        raise UserError(f"--fork {fork}: the recipe has no {point.stage} stage to start from there")
    if point is not None and not os.path.lexists(out / point.stage):
        point.require_same_weights(flatten(content))  # before the stages ahead of it are made
    if only is None and not (out / "ppo" / DONE).exists():
        require_held_out(recipe)  # before anybody is asked, and anything trained
    options: dict[str, Any] = {"reuse": reuse, "fresh_from": fresh_from, "fork": point, "extend": extend}
    told = [*callbacks, *recipe_callbacks(recipe, console.say)]
    with disk_trouble(out), Run.open(out, recipe.name, **options, callbacks=told, console=console.say) as run:
        done = 0
        for name in STAGES:
            if getattr(recipe, name) is None or (only is not None and STAGES.index(name) > STAGES.index(only)):
                continue
            if only not in (None, name) and not (out / name).exists():
                continue  # a stage alone: what is not there is missed only by what needs it
            with run.at(name):
                inputs = stage_inputs(recipe, out, name)
                _require_there(recipe, out, name, inputs)
                kept = getattr(getattr(recipe, name), "keep_checkpoints", KEEP_CHECKPOINTS)
                identity = stage_identity(recipe, name, inputs)
                stage = run.stage(name, identity, keep_checkpoints=kept)  # refuses one that was made otherwise
                if stage.finished or only not in (None, name):
                    if name not in run.linked and only in (None, name):
                        console.say(f"{name}: finished before, skipped.")
                    continue
                run.write_recipe(content)  # no sooner: a start that is refused leaves the run as it was
                run.begin(stage)
                stage.finish(make(stage, inputs))
                done += 1
        run.write_recipe(content)
        if not done and not run.linked:
            console.say(f"{out}: nothing was left to do; --fresh-from STAGE makes a stage and all later ones anew.")


class StageMaker:
    """Makes a stage in all processes: its engines alike in each, its walk in the leader alone."""

    def __init__(self, recipe: Recipe, console: Console) -> None:
        self._recipe = recipe
        self._console = console if leads() else SilentConsole()
        self._stage: StageRun | None = None  # the leader's own
        crew.enrol(self)

    def make(self, stage: StageRun, inputs: Inputs) -> dict[str, Any]:
        """Its summary; of several processes how many they were, and how long they waited for each other."""
        self._stage = stage
        crew.clock = crew.Clock()
        summary = self._make(stage.path, stage.identity, inputs)
        if world().size == 1:
            return summary
        return summary | {"processes": world().size, "time/waiting": crew.clock.idle_share}

    @crew.together
    def _make(self, path: Path, identity: Identity, inputs: Inputs) -> dict[str, Any]:
        stage = self._stage or StageRun(path, identity, self._console.say)
        console = KeptProgress(self._console, stage.path) if leads() else self._console
        bench = Workbench(self._recipe, inputs, stage, console)
        with bench.closing, crew.scope():
            try:
                return RUNNERS[stage.name](bench)
            except UserError as error:
                if not bench.led:  # a file may be missing on one host alone
                    crew.agree(str(error))
                raise


def recipe_callbacks(recipe: Recipe, warn: Callable[[str], None]) -> list[Callback]:
    """Those a recipe names: a mistake in a callback of the user's ends the run, one in a logger does not."""
    own: list[Callback] = []
    for reference in recipe.callbacks:
        made = resolve(reference)()
        if not isinstance(made, Callback):
            raise UserError(f"callbacks: {reference} returned a {type(made).__name__}, which is no keel.Callback")
        own.append(Guarded(reference, made, fatal=True, warn=warn))
    return own + make_loggers(recipe.loggers, warn)


def _require_there(recipe: Recipe, out: Path, stage: str, inputs: Inputs) -> None:
    """An earlier stage's artefact that this one needs must exist."""
    sources = [*inputs.models.values(), *(source.model for source in inputs.rewards if source.model)]
    sources += [str(data.path) for data in inputs.data.values() if data.path]
    for source in sources:
        path = Path(source)
        earlier = path.relative_to(out).parts[0] if path.is_relative_to(out) and path != out else ""
        if earlier in STAGES and not path.exists():
            raise UserError(f"{stage} needs the {earlier} stage, which has not finished in {out}; run it first")


def generate_responses(
    source: str,
    prompts: Sequence[Prompt],
    sampling: SamplingConfig,
    *,
    samples: int,
    seed: int,
    device: str,
    best_of: int = 1,
    reward: str | None = None,
) -> list[dict[str, Any]]:
    """`samples` responses of a model to each prompt, one {"prompt", "response", "ended"} each.

    With `reward`, a reward model, each is the best of `best_of`, and has its "score".
    """
    responder = Responder(source, device, best_of=best_of, reward=reward)
    items = [responder.renderer.item(prompt) for prompt in prompts for _ in range(samples)]
    context, longest = responder.context, max(len(item.tokens) for item in items)
    if context is not None and longest + sampling.max_new_tokens > context:
        raise UserError(
            f"a prompt of {longest} tokens and {sampling.max_new_tokens} new ones pass the model's context of "
            f"{context}; lower --max-new-tokens to {max(0, context - longest)}"
        )
    drawn = responder.respond(items, sampling, DrawKey(Draws(seed, "generate"), "response", 0))
    scores = responder.scores(drawn)
    return [
        {"prompt": item.text, "response": text, "ended": ended} | ({} if scores is None else {"score": scores[index]})
        for index, (item, text, ended) in enumerate(zip(items, drawn.texts, drawn.ended.tolist(), strict=True))
    ]
