"""Each finding in a small file whose faults were counted by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from keel.assessment.statistics import wilson_interval
from keel.data.audit.audit import audit
from keel.data.audit.faults import Fault
from keel.data.convert import LABELS, RANKINGS, RATINGS
from keel.errors import UserError
from tests.data.audit.support import Row, audit_of, counts, pair, rows_of, save, source

LONG = "This is a sentence. " * 6


def test_clean_data_has_no_findings(tmp_path: Path) -> None:
    found = audit_of(tmp_path, [pair("Tea?", "Yes.", "No."), pair("Tea?", "Yes.", "Hm."), pair("Milk?", "No.", "Hm.")])
    assert counts(found) == {}
    assert (found.order.prompts, found.order.least_high, found.pairs_contradicted) == (0, 0, 0)
    assert found.balance.labels_per_prompt == (1, 1.5, 2)


def test_duplicates_exact_and_but_for_space_or_case(tmp_path: Path) -> None:
    rows = [
        pair("Tea?", "Yes, please.", "No."),
        pair("Tea?", "Yes, please.", "No."),  # 1: exact
        pair("tea?", "Yes,  PLEASE.", "No. "),  # 2: but for space and case
        pair("Tea?", "Yes, please.", "No.", "ann"),
        pair("Tea?", "Yes, please.", "No.", "bob"),  # another annotator's vote
        pair("Tea?", "Yes, please.", "No.", "ann"),  # 5: hers again
        pair("Milk?", "Yes, please.", "No."),
    ]
    found = audit_of(tmp_path, rows)
    assert rows_of(found, Fault.DUPLICATE) == [1, 5]
    assert rows_of(found, Fault.DUPLICATE_NORMAL) == [2]
    assert found.annotators.votes_per_pair == {2: 1}


def test_identical_pairs_and_empty_replies_are_the_readers_and_more(tmp_path: Path) -> None:
    rows = [
        pair("Tea?", "Yes.", "Yes. "),
        pair("Tea?", "Yes.", "YES."),
        pair("Tea?", " ", "No."),
        pair("Tea?", "Yes.", ""),
        {"prompt": "Tea?", "chosen": "Yes."},
        pair("Tea?", "Yes.", "No."),
    ]
    found = audit_of(tmp_path, rows)
    assert rows_of(found, Fault.IDENTICAL) == [0]
    assert rows_of(found, Fault.IDENTICAL_NORMAL) == [1]
    assert rows_of(found, Fault.EMPTY) == [2, 3]
    assert rows_of(found, Fault.UNREADABLE) == [4]
    assert found.length.longer.total == 1


def test_an_empty_reply_that_was_collected_was_judged(tmp_path: Path) -> None:
    found = audit_of(tmp_path, [pair("Tea?", "Yes.", "", chosen_ended=True, rejected_ended=True)])
    assert counts(found) == {}
    assert found.balance.empty_judged == 1


def test_contradictions_by_whom(tmp_path: Path) -> None:
    rows = [
        pair("a", "x", "y", "ann"),
        pair("a", "y", "x", "ann"),  # she contradicts herself
        pair("b", "x", "y", "ann"),
        pair("b", "y", "x", "bob"),  # they disagree
        pair("c", "x", "y"),
        pair("c", "Y", "x"),  # nobody named, and case is no difference
        pair("d", "x", "y"),
        pair("e", "y", "x"),  # another prompt
        pair("a", "x", "y", "ann"),  # a duplicate is no further contradiction
        pair("f", "x", "y"),
        pair("f", "y", "x", "ann"),
    ]
    found = audit_of(tmp_path, rows)
    assert rows_of(found, Fault.SELF_CONTRADICTION) == [0, 1]
    assert rows_of(found, Fault.CONTRADICTION) == [2, 3, 9, 10]
    assert rows_of(found, Fault.CONTRADICTION_UNNAMED) == [4, 5]
    assert found.pairs_contradicted == 4
    assert (found.order.least_low, found.order.least_high, found.order.cyclic) == (4, 4, 0)


def test_a_cycle_and_the_labels_to_drop(tmp_path: Path) -> None:
    rows = [
        pair("p", "A", "B"),
        pair("p", "A", "B", "ann"),
        pair("p", "B", "C"),
        pair("p", "C", "A"),  # closes the circle, and is the cheapest to drop but for B over C
        pair("p", "B", "C", "ann"),
        pair("p", "C", "D"),  # leads out of it
        pair("q", "A", "B"),
        pair("q", "B", "C"),
        pair("q", "A", "C"),  # no circle
    ]
    found = audit_of(tmp_path, rows)
    assert rows_of(found, Fault.CYCLE) == [0, 1, 2, 3, 4]
    assert rows_of(found, Fault.AGAINST_ORDER) == [3]
    order = found.order
    assert (order.prompts, order.cyclic, order.triangles, order.least_low, order.least_high) == (1, 1, 1, 1, 1)
    (cycle,) = order.cycles
    labels = found.gathered.labels
    assert len(cycle) == 3
    for one, other in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
        assert labels.rejected[one] == labels.chosen[other]


def test_a_longer_circle_has_no_triangle(tmp_path: Path) -> None:
    names = "ABCDE"
    found = audit_of(tmp_path, [pair("p", a, b) for a, b in zip(names, names[1:] + "A", strict=True)])
    assert (found.order.cyclic, found.order.triangles, found.order.least_high) == (1, 0, 1)
    assert len(found.order.cycles[0]) == 5


def test_length_bias_by_hand(tmp_path: Path) -> None:
    """Three of four longer ones win, each twice as long: σ(b·log 2) = ¾."""
    rows = [pair(name, "ab", "c") for name in "pqr"] + [pair("s", "c", "ab"), pair("t", "d", "e")]
    length = audit_of(tmp_path, rows).length
    assert (length.longer.hits, length.longer.total, length.equal) == (3, 4, 1)
    assert length.slope is not None
    assert length.slope.value == pytest.approx(math.log(3) / math.log(2))
    assert length.doubled == pytest.approx(0.75)


def test_position_bias_where_the_order_is_known(tmp_path: Path) -> None:
    rows: list[Row] = [{"prompt": f"p{n}", "responses": ["a", "b"], "preferred": "first"} for n in range(7)]
    rows += [{"prompt": f"q{n}", "responses": ["a", "b"], "preferred": "second"} for n in range(3)]
    rows += [{"prompt": "t", "responses": ["a", "b"], "preferred": "tie"}]
    found = audit_of(tmp_path, rows)
    assert (found.position.first.hits, found.position.first.total) == (7, 10)
    assert found.position.first.interval == pytest.approx(wilson_interval(0.7, 10))
    assert not found.position.sorted
    assert found.balance.ties == 1
    more = [pair(f"r{n}", "a", "b", chosen_first=n < 2) for n in range(8)] + [pair("s", "a", "b")]
    collected = audit_of(tmp_path, more).position
    assert (collected.first.hits, collected.first.total, collected.unknown) == (2, 8, 1)


def test_rows_that_list_the_better_one_first_tell_no_order(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 2, 3], "annotator": "ann"}] * 5
    found = audit_of(tmp_path, rows, RANKINGS)
    assert found.position.sorted
    assert found.annotators.people[0].remarks == []
    assert counts(found) == {"duplicate": 12}


def test_cut_off_and_mid_sentence(tmp_path: Path) -> None:
    rows = [
        pair("a", f"{LONG}It goes on", "No."),  # 0
        pair("b", f"{LONG}It ends.", "No"),
        pair("c", "It goes on", "No"),  # short ones may end as they like
        pair("d", f"{LONG}“So!”", "No."),
        pair("e", "Yes", "No.", chosen_ended=False, rejected_ended=True),  # 4: known
        pair("f", f"{LONG}It goes on", "No.", chosen_ended=True, rejected_ended=True),  # known to have ended
        pair("g", "Yes.", f"{LONG}and then,"),  # 6
    ]
    found = audit_of(tmp_path, rows)
    assert rows_of(found, Fault.MID_SENTENCE) == [0, 6]
    assert rows_of(found, Fault.CUT_OFF) == [4]
    assert [found.balance.cut_chosen, found.balance.cut_rejected] == pytest.approx([2 / 7, 1 / 7])


LEAKS = [
    "Human: Perhaps you would like to hear more.",
    " Assistant: Yes.",
    "Yes.\n\nHuman: And you?",
    "Yes.\nUser: And you?",
    "Yes.  \n\n  Human: And you?",
    "Makes it less slow.  Human: Will you send me your link?",
    "Yes.<|im_end|>",
    "Yes. <|im_end|>",
    "Yes\n<|im_start|>user\nAnd you?",
    "Yes.<|im_end|>\n<|im_start|>user",
    "Yes. [INST] And you? [/INST] I too.",
    "Yes<end_of_turn>",
    "Security, and simplicity.\n\n<|user|>\n“Can you?”",
    "Use `len`.<|endoftext|>",
    "```\nprint(1)\n```\nHuman: And what does ```print``` do?",
]
MENTIONS = [
    "GPT-2 joins documents with <|endoftext|> between them.",
    "Its end token is <|endoftext|>.",
    "Mistral wraps what you ask in [INST] and [/INST], and nothing else.",
    'tokenizer.eos_token = "<|endoftext|>"',
    "It starts with `<|im_start|>user` in each turn.",
    "So:\n```\n<|im_start|>user\nHi.<|im_end|>\n```\nThat is all.",
    "Chicken. She’ll probably like apples too.  (Human: wow, that’s amazing)",
    "The engine said “Assistant: Let’s see” to me.",
    "A transcript names each speaker, as Human: and Assistant: do.",
]


@pytest.mark.parametrize(("replies", "fault"), [(LEAKS, Fault.LEAKS), (MENTIONS, Fault.MENTION)])
def test_a_turn_that_begins_in_a_reply_and_a_marker_that_is_spoken_of(
    tmp_path: Path, replies: list[str], fault: Fault
) -> None:
    rows = [pair(f"{number}", reply, "No.") for number, reply in enumerate(replies)]
    rows += [pair("x", "Yes.", replies[0]), pair(f"y {replies[0]}", "Yes.", "No.")]
    found = audit_of(tmp_path, rows)
    assert rows_of(found, fault) == list(range(len(replies) + 1))  # a prompt may hold what it likes
    other = Fault.LEAKS if fault is Fault.MENTION else Fault.MENTION
    assert rows_of(found, other) == []


PROMPT = " ".join(f"word{number}" for number in range(30))


def test_prompts_shared_by_files_and_near_duplicates(tmp_path: Path) -> None:
    train = save(
        tmp_path / "train.jsonl",
        [
            pair("Tea?", "Yes.", "No."),
            pair(PROMPT, "Yes.", "No."),
            pair("Milk?", "Yes.", "No."),
            pair("Tea?", "Hm", "No"),
        ],
    )
    test = save(
        tmp_path / "test.jsonl",
        [
            pair("  tea?", "Well.", "No."),
            pair(PROMPT.replace("word9", "other"), "Yes.", "No."),
            pair("Jam?", "Yes.", "No."),
        ],
    )
    found = audit([source(train, held_out=False), source(test, held_out=True)])
    assert rows_of(found, Fault.SHARED) == [0, 3]
    assert rows_of(found, Fault.NEAR) == [1]
    splits = found.splits
    assert (splits.by_file, splits.train, splits.held_out, splits.shared_prompts) == (True, 3, 3, 1)
    assert (splits.near_train, splits.near_held_out) == (1, 1)
    (near,) = splits.examples
    assert near.jaccard == pytest.approx(29 / 33)
    assert found.splits.between == {(0, 1): 1}
    assert Fault.NEAR.unfit(True)
    assert not Fault.NEAR.unfit(False)


def test_within_one_file_the_split_is_that_of_the_stages(tmp_path: Path) -> None:
    from keel.data.split import in_validation

    prompts = [f"{word}?" for word in ("Tea", "tea", "Milk", "Jam", "Bread", "Salt", "salt", "Oil")]
    found = audit_of(tmp_path, [pair(prompt, "Yes.", "No.") for prompt in prompts], validation=0.5)
    sides = {prompt: in_validation(prompt, 0.5) for prompt in prompts}
    both = {one.lower() for one in prompts} & {p.lower() for p, held in sides.items() if held}
    both &= {p.lower() for p, held in sides.items() if not held}
    assert found.splits.shared_prompts == len(both)
    assert found.splits.held_out == len({p.lower() for p, held in sides.items() if held})


def test_ratings_are_audited_as_the_comparisons_they_stand_for(tmp_path: Path) -> None:
    def rated(prompt: str, response: str, rating: float, annotator: str) -> Row:
        return {"prompt": prompt, "response": response, "rating": rating, "scale": [1, 5], "annotator": annotator}

    rows = [
        rated("p", "good", 5, "ann"),
        rated("p", "so so", 3, "ann"),
        rated("p", "bad", 1, "ann"),
        rated("p", "good", 2, "bob"),
        rated("p", "bad", 4, "bob"),
        rated("q", "good", 2, "ann"),
        rated("q", "Human: good", 2, "bob"),  # 6
        rated("p", "bad", 1, "ann"),  # 7: again
        rated("q", "fine", 1, "cat"),
        rated("q", "fine", 2, "cat"),  # 8 and 9 contradict each other
        rated("q", " ", 2, "cat"),  # 10
    ]
    found = audit_of(tmp_path, rows, RATINGS)
    # ann: good > so so, good > bad (twice), so so > bad (twice); bob: bad > good
    assert len(found.gathered.labels) == 6
    assert found.length.longer.total == 4
    assert found.balance.numbers == {1: 3, 2: 4, 3: 1, 4: 1, 5: 1}
    assert rows_of(found, Fault.LEAKS) == [6]
    assert rows_of(found, Fault.DUPLICATE) == [7]
    assert rows_of(found, Fault.SELF_CONTRADICTION) == [8, 9]
    assert rows_of(found, Fault.EMPTY) == [10]
    assert found.pairs_contradicted == 1
    assert found.annotators.votes_per_pair == {1: 2, 2: 1}
    assert found.annotators.agreement is not None
    assert found.annotators.agreement.value == 0.0


def test_a_prompt_with_very_many_ratings_is_cut(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": f"reply {n}", "rating": n} for n in range(203)]
    found = audit_of(tmp_path, rows, RATINGS)
    assert len(found.gathered.labels) == 200 * 199 / 2
    assert found.gathered.not_compared == 3


def test_labels_accepted_or_not(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "response": text, "accepted": text == "yes"} for text in ("yes", "no", "nay")]
    found = audit_of(tmp_path, rows, LABELS)
    assert (found.length.longer.hits, found.length.longer.total) == (1, 1)  # yes over no; yes and nay are as long
    assert found.balance.numbers == {0: 2, 1: 1}


def test_chats_and_texts_of_one_prompt_meet(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Tea?"}]
    found = audit_of(tmp_path, [pair("Tea?", "Yes.", "No."), {"prompt": chat, "chosen": "Yes.", "rejected": "No."}])
    assert rows_of(found, Fault.DUPLICATE) == [1]


def test_the_ceiling_of_labels_that_were_drawn(tmp_path: Path) -> None:
    rows = [pair("a", "x", "y", first_probability=0.9), pair("b", "x", "y", first_probability=0.3)]
    assert audit_of(tmp_path, rows).balance.noise_ceiling == pytest.approx((0.9 + 0.7) / 2)
    assert audit_of(tmp_path, [*rows, pair("c", "x", "y")]).balance.noise_ceiling is None


def test_what_is_being_done_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    path = save(tmp_path / "rows.jsonl", [pair(f"p{n}", "x", "y") for n in range(5000)])
    audit([source(path)], lambda what, count: told.append((what, count)))
    assert told[:2] == [(f"reading {path}", 2048), (f"reading {path}", 4096)]
    assert [count for _, count in told[2:]] == [5000] * len(told[2:])


def test_nothing_to_audit_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no row says which of two replies is better, most often “empty response”"):
        audit_of(tmp_path, [pair("a", "", "y")])
