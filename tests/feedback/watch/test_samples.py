from __future__ import annotations

from pathlib import Path
from typing import Any

from keel.feedback.watch.samples import SampleView, iterations, of_iteration
from tests.feedback.watch.support import begin_run, begin_stage, live, say


def views(tmp_path: Path, *rows: dict[str, Any]) -> list[SampleView]:
    run = begin_run(tmp_path / "a")
    say(begin_stage(run), 5, *rows)
    return of_iteration(live(run).stages["ppo"], 5)


def test_tokens_are_painted_by_their_kl(tmp_path: Path) -> None:
    kl = {"a": 0.0, " b": 0.049, " c": 0.05, " d": -0.3, " e": 0.7, " f": -1.5, " g": 8.0, " h": None}
    row = {"prompt": "p", "response": "a b", "score": 1.25, "kl": 2.0, "ended": False, "length": 9}
    (view,) = views(tmp_path, row | {"tokens": list(kl), "token_kl": list(kl.values())})
    (text,) = view.texts
    assert [piece.text for piece in text.pieces] == list(kl)
    assert [piece.paint for piece in text.pieces] == [0, 0, 1, -2, 3, -4, 5, 0]
    assert text.pieces[3].said == "−0.3 nats"
    assert text.rest  # a token more than is spelled
    assert view.note == "score 1.25, KL 2.00, cut at the limit"


def test_tokens_that_do_not_fit_their_kl_are_not_painted(tmp_path: Path) -> None:
    for tokens, kl in ((["a"], [0.1, 0.2]), ("a", [0.1]), (["a"], None)):
        row = {"prompt": "p", "response": "a", "tokens": tokens, "token_kl": kl}
        (view,) = views(tmp_path / str(tokens) / str(kl), row)
        assert view.texts[0].pieces == ()


def test_pairs_are_shown_side_by_side_and_other_rows_as_they_stand(tmp_path: Path) -> None:
    evaluated = {"prompt": [1], "policy": "x", "reference": "y", "policy_score": 2.0, "policy_utility": 3.0}
    asked = {"prompt": "p", "responses": ["x", "y", 3], "ended": [True, False]}
    chosen, pair, waiting, other = views(
        tmp_path, {"prompt": "p", "chosen": "x", "rejected": "y"}, evaluated, asked, {"made": {"by": "hand"}}
    )
    assert [(text.label, text.text) for text in chosen.texts] == [("chosen", "x"), ("rejected", "y")]
    assert [text.note for text in pair.texts] == ["score 2.00, true 3.00", ""]
    assert pair.prompt == "[1]"
    assert [(text.label, text.text) for text in waiting.texts] == [("response 1", "x"), ("response 2", "y")]
    assert '"by": "hand"' in other.other


def test_samples_by_iteration(tmp_path: Path) -> None:
    run = begin_run(tmp_path / "a")
    ppo = begin_stage(run)
    for iteration in (0, 10, 20):
        say(ppo, iteration, *({"response": f"{iteration}/{row}"} for row in range(20)))
    stage = live(run).stages["ppo"]
    assert iterations(stage) == [0, 10, 20]
    assert [view.texts[0].text for view in of_iteration(stage, 10)] == [f"10/{row}" for row in range(16)]
