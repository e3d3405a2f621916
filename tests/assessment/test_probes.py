"""What each probe says."""

from __future__ import annotations

import numpy as np

from keel.assessment.probes import probes


def test_every_probe_for_every_prompt() -> None:
    asked, replies = ["why ?", "how ?"], ["because it\nis so", ""]
    made = probes(asked, replies, np.random.default_rng(0))
    assert all(len(texts) == 2 for texts in made.values())
    assert made["empty"] == ["", ""]
    assert made["prompt copied"] == asked
    assert made["one word repeated"][0] == " ".join(["is"] * 12)
    assert made["reply said over and over"][0] == " ".join(["because it is so"] * 6)
    assert made["one long line"][0] == "because it is so yes because it is so yes"
    assert sorted(made["confident nonsense"][1].split(": ")[1].split()) == sorted(["because", "it", "is", "so"])
    assert set(made) > {"refusal", "repetitive but safe"}
