"""A conversation against `generate_responses` on the dialogue written out by hand."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from keel.build import generate_responses, load_renderer
from keel.build.conversation import Conversation, Responder
from keel.config.sampling import SamplingConfig
from keel.errors import UserError
from keel.schema import Message, Prompt
from tests.starters.support import CONTEXT, save_world
from tests.worlds import chatml_codec, save_tiny_lm

GREEDY = SamplingConfig(max_new_tokens=10, temperature=0.0)
DRAWN = SamplingConfig(max_new_tokens=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("world")
    save_world(folder)
    return str(folder / "model")


def expected(model: str, *turns: tuple[str, str]) -> str:
    """The greedy answer to a whole dialogue."""
    prompt = Prompt(tuple(Message(role, text) for role, text in turns))
    (row,) = generate_responses(model, [prompt], GREEDY, samples=1, seed=0, device="cpu")
    return str(row["response"])


def talk(model: str, system: str = "") -> Conversation:
    return Conversation(Responder(model, "cpu"), system)


def test_every_answer_has_seen_what_was_said_before(model: str) -> None:
    conversation = talk(model, system="be brief")
    first = conversation.ask("hi there", GREEDY, seed=0, turn=0)
    assert first.text == expected(model, ("system", "be brief"), ("user", "hi there"))
    second = conversation.ask("and now ?", GREEDY, seed=0, turn=1)
    turns = (("system", "be brief"), ("user", "hi there"), ("assistant", first.text), ("user", "and now ?"))
    assert second.text == expected(model, *turns)
    assert (first.forgotten, second.forgotten) == (0, 0)
    conversation.reset()
    conversation.system = ""
    assert conversation.ask("and now ?", GREEDY, seed=0, turn=2).text == expected(model, ("user", "and now ?"))


def test_a_models_own_template_is_used(tmp_path: Path) -> None:
    model = str(save_tiny_lm(tmp_path / "chat", chatml_codec()))
    reply = talk(model).ask("Hi", GREEDY, seed=0, turn=0)
    assert reply.text == expected(model, ("user", "Hi"))
    said = load_renderer(model).codec.hf.decode(load_renderer(model).item(Prompt((Message("user", "Hi"),))).tokens)
    assert said == "<|turn|>user\nHi<|end|>\n<|turn|>assistant\n"


def test_the_same_seed_and_turn_draw_the_same(model: str) -> None:
    one, same = talk(model), talk(model)
    for turn in range(2):
        assert one.ask("hi", DRAWN, seed=3, turn=turn) == same.ask("hi", DRAWN, seed=3, turn=turn)
    texts = {talk(model).ask("hi", DRAWN, seed=seed, turn=turn).text for seed in (3, 4) for turn in (0, 1)}
    assert len(texts) == 4


def test_the_oldest_exchanges_leave_a_full_context(model: str) -> None:
    """An exchange takes some 30 tokens: not all of six fit beside a system message that stays."""
    renderer = load_renderer(model)
    conversation = talk(model, system="be brief")
    kept: list[tuple[str, str]] = []
    forgotten = 0
    for turn in range(6):
        question = f"what is number {turn} please ?"
        reply = conversation.ask(question, GREEDY, seed=0, turn=turn)
        forgotten += reply.forgotten
        kept = kept[reply.forgotten :]
        turns = [("system", "be brief")]
        for asked, answered in kept:
            turns += [("user", asked), ("assistant", answered)]
        turns.append(("user", question))
        length = renderer.length(Prompt(tuple(Message(*pair) for pair in turns)))
        assert length + GREEDY.max_new_tokens <= CONTEXT
        assert reply.text == expected(model, *turns)
        kept.append((question, reply.text))
    assert 0 < forgotten < 6
    assert len(kept) > 1  # no more was dropped than had to be


def test_a_message_that_never_fits_is_refused_and_changes_nothing(model: str) -> None:
    conversation = talk(model)
    first = conversation.ask("hi", GREEDY, seed=0, turn=0)
    with pytest.raises(UserError, match=r"passes the context of 128; shorten it"):
        conversation.ask("no " * 200, GREEDY, seed=0, turn=1)
    second = conversation.ask("and now ?", GREEDY, seed=0, turn=1)
    turns = (("user", "hi"), ("assistant", first.text), ("user", "and now ?"))
    assert second.text == expected(model, *turns)


def test_an_answer_is_heard_as_it_grows(model: str) -> None:
    heard: list[str] = []
    reply = talk(model).ask("hi there", DRAWN, seed=1, turn=0, hear=heard.append)
    assert heard[-1] == reply.text
    assert 1 < len(heard) <= DRAWN.max_new_tokens
    for shorter, longer in pairwise(heard):  # but for characters of which only some bytes are there
        assert longer.startswith(shorter.rstrip("\ufffd"))


def test_an_interrupted_answer_is_forgotten(model: str) -> None:
    def stop(text: str) -> None:
        raise KeyboardInterrupt

    conversation = talk(model)
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("never mind", GREEDY, seed=0, turn=0, hear=stop)
    assert conversation.ask("hi", GREEDY, seed=0, turn=0).text == expected(model, ("user", "hi"))
