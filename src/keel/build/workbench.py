"""What every stage is built with: its inputs and directory, and loading with checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from keel.build.rewards import function_scorer, model_scorer, service_scorer
from keel.build.shelf import Shelf
from keel.config.data import DataConfig, LongPrompts
from keel.config.recipe import Recipe
from keel.config.rewards import RewardSource
from keel.config.sampling import SamplingConfig
from keel.data.convert import PROMPTS, Kind
from keel.data.load import Labelled, Loaded, Mixed, load
from keel.data.reasons import Check
from keel.dist import crew
from keel.engines.base import Sampler, Scorer
from keel.engines.learner import GradientLearner
from keel.engines.sampler import make_sampler
from keel.engines.scorers import FunctionScorer, WeightedScorer
from keel.errors import UserError
from keel.inputs import Inputs
from keel.models.load import context_length
from keel.models.policy import Policy
from keel.models.quiet import quiet_transformers
from keel.records import PromptItem
from keel.references import resolve
from keel.runs.console import Console
from keel.runs.run import StageRun
from keel.schema import AnyRecord, Prompt
from keel.seeds import Draws
from keel.text.render import Renderer
from keel.text.templates import install_template
from keel.text.tokenizers import load_codec
from keel.user_functions import checked

R = TypeVar("R", bound=AnyRecord)
T = TypeVar("T")

SCORING_TOKENS = 16_384  # padded tokens a forward without gradient


class Fits:
    """Whether a record's tokens have room, and of how many that is so only because their prompts are cut."""

    def __init__(self, renderer: Renderer, room: int, long_prompts: LongPrompts) -> None:
        self.renderer = renderer
        self.room = room
        self.cuts = long_prompts == "cut"
        self.num_cut = 0

    def __call__(self, row: AnyRecord) -> bool:
        prompt, response = self.renderer.lengths(row)
        if prompt + response <= self.room:
            return True
        if not self.cuts or response >= self.room:
            return False
        self.num_cut += 1
        return True


class Workbench:
    """What every stage's runner needs: the recipe, the stage's inputs and directory, and loading with checks."""

    def __init__(self, recipe: Recipe, inputs: Inputs, stage: StageRun, console: Console) -> None:
        self.recipe = recipe
        self.inputs = inputs
        self.stage = stage
        self.console = console
        self.draws = Draws(recipe.seed, stage.name)
        self.models = Shelf(recipe.model, recipe.device, stage, self.draws)
        self.closing = ExitStack()  # what has to be ended with the stage
        self.led = False  # whether the leader walks, and the others wait
        self._said: set[str] = set()

    def renderer(self, source: str) -> Renderer:
        """The text side of a model."""
        model = self.recipe.model
        return load_renderer(source, chat_template=model.chat_template, trust_remote_code=model.trust_remote_code)

    def room(self, sources: Sequence[str], max_tokens: int, sampling: SamplingConfig | None = None) -> int:
        """The longest row, or prompt that leaves room for a response, within the setting and every model's context."""
        trust = self.recipe.model.trust_remote_code
        limits = [limit for source in sources if (limit := context_length(source, trust_remote_code=trust)) is not None]
        left = min(limits, default=max_tokens) - (sampling.max_new_tokens if sampling and limits else 0)
        if left < 1:
            raise UserError(
                f"{self.stage.name}: max_new_tokens leaves no prompt room in {min(limits)} tokens of context; lower it"
            )
        return min(max_tokens, left)

    def other_models(self) -> list[str]:
        """The reference and the critic: whatever else reads what is sampled, and cuts nothing off."""
        return [self.inputs.models[role] for role in ("reference", "critic") if role in self.inputs.models]

    def require_same_tokenizer(self, renderer: Renderer, source: str, what: str) -> None:
        """Refuse a second model that would read the first one's ids as other words."""
        if self.renderer(source).codec.hf.get_vocab() != renderer.codec.hf.get_vocab():
            raise UserError(
                f"{what} ({source}) has another tokenizer, so it would read other texts; give a model of that family"
            )

    def load(
        self,
        key: str,
        kind: Kind[R] | Callable[[DataConfig], Kind[R]],
        renderer: Renderer,
        room: int,
        long_prompts: LongPrompts = "drop",
    ) -> Mixed[R]:
        """The records of all sources of one input; those that pass `room` are left out, or kept for their cut.

        `kind` is that of all sources, or says which one has.
        """
        parts: list[tuple[DataConfig, Loaded[R]]] = []
        for data in self.inputs.sources(key):
            fits = Fits(renderer, room, long_prompts)
            with quiet_transformers():  # its warning of texts beyond the context: those are left out or cut here
                parts.append((data, load(data, kind if isinstance(kind, Kind) else kind(data), fits)))
            self.report(data, parts[-1][1].check)
            self.report_cuts(data.name, fits)
        return Mixed(tuple(parts))

    def prompts(self, key: str, renderer: Renderer, room: int, long_prompts: LongPrompts = "drop") -> Mixed[Prompt]:
        """The prompts of one input; those that pass `room` are left out, or kept for their cut."""
        return self.load(key, PROMPTS, renderer, room, long_prompts)

    @staticmethod
    def items(renderer: Renderer, prompts: Sequence[Labelled[Prompt]], room: int) -> list[PromptItem]:
        """The prompts ready to be sampled from, cut to `room` where they pass it."""
        return [renderer.item(prompt.record, room=room, kind=prompt.kind) for prompt in prompts]

    def some(self, prompts: Sequence[T], count: int) -> list[T]:
        """At most `count` of the prompts, drawn, so that the order of a file plays no part."""
        order = self.draws.permutation("held-out prompts", len(prompts)).tolist()
        return [prompts[index] for index in order[:count]]

    def report(self, data: DataConfig, check: Check) -> None:
        """Say which rows were left out, if any."""
        if check.left_out:
            self.console.say(f"{self.stage.name}: {left_out(data, check)}")

    def report_cuts(self, name: str, fits: Fits) -> None:
        """Say how many prompts of `name` are kept for their cut, if any."""
        if fits.num_cut:
            self.console.say(
                f"{self.stage.name}: {name}: {fits.num_cut} prompts lose their oldest tokens to fit {fits.room}."
            )

    def lead(self, stage: Callable[[], T], learner: GradientLearner[Any] | None = None) -> T:
        """Every engine is made: what does not train is spread over the processes, and the leader walks the stage.

        `learner` is what trains in it. More may be made afterwards, and led again.
        """
        self.led = True
        crew.agree(None)
        self.models.spread()
        result = crew.lead(stage)
        self.led = False
        return result

    def say_models(self) -> None:
        """What the stage holds in memory."""
        self.console.say(f"{self.stage.name}: {self.models.describe()}.")

    def sampler(self, policy: Policy, renderer: Renderer) -> Sampler:
        """What draws from a policy; which kind it is is said once a stage where it is the slow one."""
        return make_sampler(policy, renderer, say=self._warn_once)

    def scorer(self, renderer: Renderer) -> Scorer:
        """The weighted rewards of the stage."""
        return WeightedScorer([(self._reward(source, renderer), source.weight) for source in self.inputs.rewards])

    def judge(self, renderer: Renderer) -> Scorer | None:
        """The reward that is not trained on, if there is one."""
        return None if self.inputs.judge is None else self._reward(self.inputs.judge, renderer)

    def function(self, key: str) -> Scorer | None:
        """The user's function of that key as a scorer, if there is one."""
        reference = self.inputs.functions.get(key)
        return None if reference is None else FunctionScorer(key, checked(reference, resolve(reference)), self._warn)

    def _reward(self, source: RewardSource, renderer: Renderer) -> Scorer:
        if source.function is not None:
            return function_scorer(source, self._warn, self.closing)
        if source.service is not None:
            return service_scorer(source, self.closing)
        assert source.model is not None
        return model_scorer(
            source,
            self.models.reward_models(source.model, f"reward model {source.logged_as}"),
            renderer,
            token_budget=SCORING_TOKENS,
            trust_remote_code=self.recipe.model.trust_remote_code,
            say=self._warn,
        )

    def tells(self, renderer: Renderer) -> dict[str, Any]:
        """How a learner of this stage speaks of what goes wrong."""
        return {"say": self.console.say, "decode": renderer.codec.hf.decode}

    def _warn(self, text: str) -> None:
        self.console.say(f"{self.stage.name}: {text}")

    def _warn_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._warn(text)


def left_out(data: DataConfig, check: Check) -> str:
    """How many rows of a source, and why."""
    reasons = ", ".join(f"{count} {reason.value}" for reason, count in check.counts.items() if not reason.is_warning)
    return f"{data.name}: {check.left_out} of {check.total} rows left out ({reasons})."


def load_renderer(source: str, *, chat_template: str = "auto", trust_remote_code: bool = False) -> Renderer:
    """A model's tokenizer with its one chat template, as the owner of ids."""
    codec = load_codec(source, trust_remote_code=trust_remote_code)
    install_template(codec, chat_template)
    return Renderer(codec)
