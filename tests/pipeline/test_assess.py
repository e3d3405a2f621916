"""The assessment of rewards that are known to be good, bad and broken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from keel.config.sampling import SamplingConfig
from keel.data.load import Labelled
from keel.engines.base import DrawKey
from keel.errors import UserError
from keel.pipeline import assess as module
from keel.pipeline.assess import Judge, Reference, Reply, assess, item_of
from keel.records import PromptItem, Samples, Scores
from keel.schema import Comparison
from keel.seeds import Draws
from tests.pipeline.support import Heard

PROMPTS = [f"question {number} ?" for number in range(20)]
GOOD, BAD = "yes, of course it is so", "no idea at all, whoever asks me about it"


class Stub:
    """A reward of (prompt, text) and of what else is in its batch; with several members if it gives several."""

    def __init__(self, rule: Callable[[str, str, int], float], members: int = 1) -> None:
        self.rule = rule
        self.members = members
        self.asked: list[tuple[str, str]] = []

    def score(self, samples: Samples) -> Scores:
        self.asked += [(prompt.text, text) for prompt, text in zip(samples.prompts, samples.texts, strict=True)]
        longest = max(map(len, samples.texts))
        total = torch.tensor(
            [self.rule(p.text, text, longest) for p, text in zip(samples.prompts, samples.texts, strict=True)]
        )
        spread = torch.tensor([len(set(text)) / 10 for text in samples.texts])
        several = {"stub": torch.stack([total - spread, total + spread], dim=1)} if self.members > 1 else {}
        return Scores(total=total, parts={"stub": total}, members=several)


class Parrot:
    """A sampler that says the prompt's own good reply, and at a higher temperature a longer one."""

    def sample(self, prompts: Sequence[PromptItem], config: SamplingConfig, key: DrawKey) -> Samples:
        texts = tuple(f"{GOOD} {prompt.text}" + " zxjb" * int(10 * (config.temperature - 1)) for prompt in prompts)
        made = module._as_samples([Reply(prompt, text) for prompt, text in zip(prompts, texts, strict=True)])
        return made


def comparisons() -> list[Labelled[Comparison]]:
    """The good reply, with the prompt in it, is preferred; it is shorter than the other one."""
    return [Labelled(Comparison(prompt, f"{GOOD} {prompt}", f"{BAD} {prompt}"), None) for prompt in PROMPTS]


def on_point(prompt: str, text: str, longest: int) -> float:
    """Short replies that hold the prompt: what the data prefer."""
    return (3.0 if prompt in text and text.startswith(GOOD) else -3.0) - len(text) / 1000


def by_length(prompt: str, text: str, longest: int) -> float:
    return float(len(text))


def by_padding(prompt: str, text: str, longest: int) -> float:
    return on_point(prompt, text, longest) + 0.01 * longest


def assessed(judge: Judge, reference: Reference | None = None) -> dict[str, Any]:
    draws = Draws(0, "assess")
    return assess(judge, comparisons(), ["data"], reference, samples=16, draws=draws, console=Heard())


def reference() -> Reference:
    return Reference(Parrot(), [item_of(prompt, {}) for prompt in PROMPTS], SamplingConfig(temperature=1.0))


def test_a_good_reward_raises_no_alarm() -> None:
    found = assessed(Judge(Stub(on_point)), reference())
    assert found["accuracy"]["accuracy"] == 1.0
    assert found["responses"] == 40
    assert found["invariance"]["holds"]
    assert found["alarms"] == []
    kinds = [group["kind"] for group in found["replies"]]
    assert kinds == ["real", "off", "off", *["probe"] * 8]
    assert [group["replies"] for group in found["replies"]] == [16] * 11


def test_a_reward_that_loves_length_is_found_out() -> None:
    found = assessed(Judge(Stub(by_length)))
    assert found["accuracy"]["accuracy"] == 0.0
    assert found["length"]["pearson"] == pytest.approx(1.0)
    said = " ".join(found["alarms"])
    for probe in ("reply said over and over", "one long line", "repetitive but safe"):
        assert f"“{probe}” scores above the median" in said
    assert "“empty”" not in said


def test_a_reward_that_depends_on_padding_is_found_out() -> None:
    found = assessed(Judge(Stub(by_padding)), reference())
    assert not found["invariance"]["holds"]
    assert any("with its padding" in sentence or "with its batch" in sentence for sentence in found["alarms"])


def test_members_disagree_where_the_reference_never_goes() -> None:
    """The stub's members differ by the number of different letters: a hot reply has four more than a real one."""
    found = assessed(Judge(Stub(on_point, members=2)), reference())
    real, hot = (
        next(group for group in found["replies"] if group["name"] == name)
        for name in ("replies of the reference", "replies of the reference, twice as hot")
    )
    assert hot["disagreement_above"] > 0.9
    assert hot["disagreement"] > real["disagreement"]
    assert real["disagreement_above"] == pytest.approx(0.5)


def test_replies_to_other_prompts_belong_to_others() -> None:
    stub = Stub(on_point)
    assessed(Judge(stub), reference())
    foreign = [(asked, said) for asked, said in stub.asked if said.startswith(GOOD) and said.count("question") == 1]
    assert any(asked not in said for asked, said in foreign)


def test_each_response_is_scored_once_and_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)
    stub, heard = Stub(on_point), Heard()
    twice = [*comparisons(), *comparisons()]
    found, cut = module._compare(Judge(stub), twice, ["data"], heard)
    assert len(stub.asked) == len(found.scores) == 40
    assert heard.progressed == [("assess", done, 40) for done in (7, 14, 21, 28, 35, 40)]
    assert cut == 0
    gap = (len(BAD) - len(GOOD)) / 1000 + 6
    assert found.gaps.tolist() == pytest.approx([gap] * 40)


def test_who_judged_and_how_likely_it_was() -> None:
    """Two of three name an annotator, the same; one says that it was sure, as a whole number."""
    named: list[tuple[str | None, dict[str, Any]]] = [
        ("ann", {}),
        (None, {"first_probability": 1}),
        ("ann", {"first_probability": 0.75}),
    ]
    pairs = [Labelled(Comparison("p", "a", "b", annotator=who, extra=extra), None) for who, extra in named]
    found, _ = module._compare(Judge(Stub(on_point)), pairs, ["data"], Heard())
    assert found.annotators[0] == found.annotators[2] >= 0 > found.annotators[1]
    assert found.probabilities[1:].tolist() == [1.0, 0.75]


def test_a_probe_that_is_too_long_loses_its_end() -> None:
    judge = Judge(Stub(on_point), has_room=lambda prompt, text: len(text) <= 20)
    assert judge.within(item_of("q", {}), "a" * 30).text == "a" * 16
    assert judge.within(item_of("q", {}), "a" * 20).text == "a" * 20


def test_a_score_that_is_no_number_is_refused() -> None:
    def broken(prompt: str, text: str, longest: int) -> float:
        return float("nan") if text.startswith(BAD) else 1.0

    with pytest.raises(UserError, match="no finite score to the reply 'no idea at all"):
        assessed(Judge(Stub(broken)))


def test_one_prompt_has_no_other() -> None:
    pair = comparisons()[:1]
    found = assess(Judge(Stub(on_point)), pair, ["data"], None, samples=16, draws=Draws(0, "assess"), console=Heard())
    assert [group["kind"] for group in found["replies"]] == ["real", *["probe"] * 8]


def test_a_response_that_was_cut_off_is_judged_as_one() -> None:
    pair = Comparison("p", "whole", "cut", extra={"rejected_ended": False})
    chosen, rejected = module._sides(pair)
    assert (chosen.ended, rejected.ended) == (True, False)
