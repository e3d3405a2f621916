from __future__ import annotations

import re

import pytest
import torch

from keel.doctor import computing
from keel.doctor.computing import check_bf16, check_computing, check_step
from keel.doctor.finding import Mark
from keel.models.scratch import scratch_causal_lm

CPU = torch.device("cpu")


def test_this_machine_computes() -> None:
    device, bf16, step = check_computing()
    assert torch.__version__ in device.said
    assert bf16.mark is not Mark.BAD
    assert step.mark is Mark.GOOD
    rate = re.search(r"([\d,]+) tokens a second", step.said)
    assert rate is not None
    assert int(rate[1].replace(",", "")) > 0


def test_gradients_that_are_not_finite_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**settings: int | None) -> torch.nn.Module:
        model = scratch_causal_lm(**settings)  # type: ignore[arg-type]  # as they came
        with torch.no_grad():
            next(model.parameters())[5, 0] = float("nan")
        return model

    monkeypatch.setattr(computing, "scratch_causal_lm", broken)
    monkeypatch.setattr("keel.models.policy._require_known_head", lambda backbone: None)
    finding = check_step(CPU)
    assert (finding.mark, bool(finding.mend)) == (Mark.BAD, True)


def test_wrong_bf16_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self * 1.1)
    assert check_bf16(CPU).mark is Mark.NOTE
