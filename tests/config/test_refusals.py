"""What a recipe may not say, and the sentence that says so."""

from __future__ import annotations

import re
from typing import Any

import pytest

from keel.config.recipe import parse_recipe
from keel.errors import UserError
from tests.config.support import PPO, SFT, refusal, tree

PEAK = {"utility": "keel.demo:polite", "stop_at_peak": 2}


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        # mistyped and unknown keys
        ({"pppo": {}}, "unknown key `pppo`; did you mean `ppo`?"),
        ({"sft": SFT | {"lrr": 1}}, "unknown key `sft.lrr`; did you mean `lr`?"),
        ({"ppo": PPO | {"kl": {"coeff": 1}}}, "unknown key `ppo.kl.coeff`; did you mean `coef`?"),
        (
            {"ppo": PPO | {"reward": [{"function": "a:b", "wieght": 1}]}},
            "`ppo.reward.0.wieght`; did you mean `weight`?",
        ),
        ({"reward": {"data": {"pth": "x"}}}, "unknown key `reward.data.pth`; did you mean `path`?"),
        (
            {"ppo": PPO | {"kl": {"zzzz": 1}}},
            "unknown key `ppo.kl.zzzz`; known here: anneal_from, anneal_over, budget, coef, dual_lr",
        ),
        (
            {"sft": SFT | {"token_bugdet": 1, "epoch": 2}},
            "`token_budget`?; unknown key `sft.epoch`; did you mean `epochs`?",
        ),
        # missing, wrong kind
        ({"name": None}, "`name` is missing"),
        ({"sft": {}}, "`sft.data` is missing"),
        ({"collect": {"prompts": "p"}}, "`collect.annotator` is missing"),
        ({"sft": 3}, "`sft` should be a mapping of keys, not 3"),
        ({"reward": {"data": 3}}, "`reward.data` should be a mapping of keys, not 3"),
        ({"name": "a/b"}, "`name`: string should match"),
        ({"name": 2024}, "`name`: input should be a valid string, not 2024"),
        ({"sft": SFT | {"epochs": "two"}}, "`sft.epochs`: input should be a valid integer"),
        ({"sft": SFT | {"schedule": "linear"}}, "`sft.schedule`: input should be 'cosine' or 'constant', not 'linear'"),
        ({"ppo": PPO | {"critic": "tail"}}, "`ppo.critic`: input should be 'head', 'network' or 'none', not 'tail'"),
        # out of range
        ({"seed": -1}, "`seed`: should be at least 0, not -1"),
        ({"sft": SFT | {"lr": 0}}, "`sft.lr`: should be above 0, not 0"),
        ({"sft": SFT | {"lr": float("nan")}}, "`sft.lr`: input should be a finite number, not nan"),
        ({"sft": SFT | {"lr": float("inf")}}, "`sft.lr`: input should be a finite number, not inf"),
        ({"sft": SFT | {"betas": [0.9, 1.0]}}, "`sft.betas.1`: should be at least 0 and below 1, not 1.0"),
        (
            {"reward": {"data": {"path": "x", "limit": 0}}},
            "`reward.data.limit`: should be at least 1, not 0",
        ),
        (
            {"reward": {"flip_probability": 0.5}},
            "`reward.flip_probability`: should be at least 0 and below 0.5, not 0.5",
        ),
        ({"ppo": PPO | {"advantage": {"lam": 1.1}}}, "`ppo.advantage.lam`: should be at least 0 and at most 1"),
        ({"model": {"scratch": {"vocab": 100}}}, "`model.scratch.vocab`: should be at least 260"),
        (
            {"collect": {"prompts": "p", "annotator": {"script": "a:b"}, "per_prompt": 1}},
            "`collect.per_prompt`: should be at least 2",
        ),
        (
            {"collect": {"prompts": "p", "annotator": {}}},
            "an annotator is either `script:` (a utility), `factory:` (one of your own) or `people:`",
        ),
        (
            {"collect": {"prompts": "p", "annotator": {"people": {"project": "a"}, "script": "a:b"}}},
            "an annotator is either `script:` (a utility), `factory:` (one of your own) or `people:`",
        ),
        (
            {"collect": {"prompts": "p", "annotator": {"people": {"project": "a"}, "temperature": 0.5, "name": "b"}}},
            "temperature has no effect with people, who bring their own; leave it out; `collect.annotator`: name has",
        ),
        (
            {
                "collect": {
                    "prompts": "p",
                    "annotator": {"people": {"project": "a", "database": "postgresql://a:b@c/d"}},
                }
            },
            "`collect.annotator.people`: database holds a password, which the run would keep; give that URL in $KEEL_",
        ),
        (
            {"collect": {"prompts": "p", "annotator": {"people": {"project": "a", "enough": 0}}}},
            "`collect.annotator.people.enough`: should be above 0 and at most 1, not 0",
        ),
        # combinations
        ({"model": {}}, "`model`: give exactly one of `base` (a path or a hub name) and `scratch`"),
        ({"model": {"base": "m", "scratch": {}}}, "`model`: give exactly one of `base`"),
        (
            {"model": {"scratch": {"hidden": 10}}},
            "`model.scratch`: hidden (10) must be a multiple of twice the heads (4)",
        ),
        (
            {"model": {"scratch": {}}, "sft": None},
            "model.scratch starts from nothing, so the recipe needs an sft stage",
        ),
        ({"collect": None}, "reward.data is `collect`, but the recipe has no collect stage: add it, or name a file"),
        ({"reward": None}, "ppo.reward uses the model `reward`, but the recipe has no reward stage"),
        (dict.fromkeys(("sft", "collect", "reward", "ppo", "evaluate")), "the recipe names no stage: add at least one"),
        (
            {"reward": {"flip_probability": 0.1, "label_smoothing": 0.1}},
            "`reward`: flip_probability models noise, label_smoothing shrinks the scores: give one, not both",
        ),
        ({"sft": {"data": {"path": "a", "function": "b:c"}}}, "`sft.data`: give either path"),
        # ppo
        (
            {"ppo": PPO | {"kl": {"kind": "adaptive"}}},
            "`ppo.kl`: kl.target belongs to `kind: adaptive` and `kind: constraint`, which need it",
        ),
        ({"ppo": PPO | {"kl": {"target": 6}}}, "`ppo.kl`: kl.target belongs to `kind: adaptive`"),
        (
            {"ppo": PPO | {"kl": {"kind": "adaptive", "target": 6, "coef": 0}}},
            "kl.coef 0 cannot adapt with kind: adaptive (it is multiplied)",
        ),
        (
            {"ppo": PPO | {"rollout_batch": 10}},
            "`ppo`: rollout_batch (10) must be a multiple of update.minibatches (4)",
        ),
        (
            {"ppo": PPO | {"reward": []}},
            "`ppo.reward`: it is empty: give at least one reward model, function or service",
        ),
        ({"ppo": PPO | {"reward": [{"weight": 2}]}}, "`ppo.reward.0`: a reward is either `model:` or `function:`"),
        (
            {"ppo": PPO | {"reward": [{"model": "a/same"}, {"model": "b/same/"}]}},
            "two rewards share a name (same, same); each is logged apart, so give them a `name:` each",
        ),
        (
            {"ppo": PPO | {"reward": [{"function": "a:b", "label": 1}]}},
            "`ppo.reward.0`: label has no effect on a function; leave it out",
        ),
        (
            {"ppo": PPO | {"reward": [{"model": "a/b", "workers": 2}]}},
            "`ppo.reward.0`: workers has no effect on a model; leave it out",
        ),
        (
            {"ppo": PPO | {"reward": [{"function": "a:b", "timeout": 2}]}},
            "`ppo.reward.0`: timeout has no effect without workers, since what runs in Keel's own process cannot be",
        ),
        ({"ppo": PPO | {"reward": [{"model": "a/b", "name": "a/b"}]}}, "`ppo.reward.0.name`: string should match"),
        (
            {"ppo": PPO, "evaluate": {"prompts": "p.jsonl", "reward": [{"model": "a/same"}, {"model": "b/same"}]}},
            "`evaluate.reward`: two rewards share a name (same, same)",
        ),
        (
            {"ppo": PPO | {"sampling": {"top_k": 5}}},
            "`ppo.sampling`: top_k/top_p draw from a cut distribution that is not the policy's, so ratio and KL would "
            "be biased; remove them",
        ),
        ({"ppo": PPO | {"sampling": {"top_p": 0.9}}}, "`ppo.sampling`: top_k/top_p draw from a cut distribution"),
        (
            {"ppo": PPO | {"sampling": {"temperature": 0}}},
            "`ppo.sampling`: temperature 0 has no distribution to learn from; give one above 0",
        ),
        ({"evaluate": {"prompts": "p", "sampling": {"top_k": 5}}}, "`evaluate.sampling`: top_k/top_p"),
        # keys without effect
        ({"ppo": PPO | {"kl": {"horizon": 50}}}, "`ppo.kl`: horizon has no effect with kind: fixed; leave it out"),
        (
            {"ppo": PPO | {"advantage": {"kind": "monte_carlo", "lam": 0.5}}},
            "`ppo.advantage`: lam has no effect with kind: monte_carlo; leave it out",
        ),
        (
            {"ppo": PPO | {"update": {"value_coef": 0, "value_clip": 0.1}}},
            "`ppo.update`: value_clip has no effect with value_coef 0; leave it out",
        ),
        (
            {"ppo": PPO | {"update": {"value_coef": 0, "critic_lr_scale": 2}}},
            "`ppo.update`: critic_lr_scale has no effect with value_coef 0; leave it out",
        ),
        ({"sft": {"data": []}}, "`sft.data` should be a mapping of keys, not []"),
        ({"sft": {"data": ["a", {"pth": "b"}]}}, "unknown key `sft.data.1.pth`; did you mean `path`?"),
        (
            {"reward": {"data": ["a", {"path": "b", "weight": 0}]}},
            "`reward.data.1.weight`: should be above 0 and at most 1000",
        ),
        (
            {"evaluate": {"prompts": {"path": "a", "weight": 2}, "policy": "p"}},
            "`evaluate`: weight has no effect on prompts that are judged, each once",
        ),
        (
            {"ppo": {"prompts": "a", "evaluate": {"prompts": ["a", {"path": "b", "weight": 2}]}}},
            "`ppo.evaluate`: weight has no effect on prompts that are judged, each once",
        ),
        ({"sft": {"data": "a", "train_on": "first"}}, "`sft.train_on`: input should be 'last' or 'all', not 'first'"),
        (
            {"collect": {"prompts": "a", "annotator": {"script": "a:b"}, "sampling": {"stop": [""]}}},
            "`collect.sampling.stop.0`: string should have at least 1 character",
        ),
        ({"sft": {"data": {"function": "a:b", "split": "test"}}}, "`sft.data`: split has no effect on a function"),
        # algorithms
        (
            {"ppo": PPO | {"advantage": {"kind": "rlo"}}},
            "`ppo.advantage.kind`: no estimator is called 'rlo'; there are gae, monte_carlo, td",
        ),
        (
            {"ppo": PPO | {"advantage": {"kind": "rloo", "gamma": 0.9}}},
            "`ppo.advantage`: gamma has no effect with kind: rloo; leave it out",
        ),
        (
            {"ppo": PPO | {"advantage": {"kind": "grpo", "whiten": True}}},
            "`ppo.advantage`: whiten: true does not go with kind: grpo; it has a baseline of its own",
        ),
        (
            {"ppo": PPO | {"advantage": {"kind": "reinforce_pp", "whiten": False}}},
            "`ppo.advantage`: whiten: false does not go with kind: reinforce_pp; whitening is its baseline",
        ),
        (
            {"ppo": PPO | {"advantage": {"kind": "rloo"}, "per_prompt": 1}},
            "`ppo`: advantage.kind rloo compares the responses to a prompt: give per_prompt 2 or more",
        ),
        (
            {"ppo": PPO | {"advantage": {"kind": "rloo"}, "critic": "head"}},
            "`ppo`: critic: head would be trained and never read with advantage.kind rloo; leave it out",
        ),
        (
            {"ppo": PPO | {"rollout_batch": 8, "per_prompt": 3}},
            "`ppo`: rollout_batch (8) counts responses and must be a multiple of per_prompt (3)",
        ),
        (
            {"ppo": PPO | {"update": {"ratio": "gspo"}}},
            "`ppo`: update.ratio: gspo clips whole responses and needs one advantage a response, and gae gives one a "
            "token; take sequence, reinforce, rloo, grpo, dr_grpo, best_of_n, or ratio: token",
        ),
        (
            {"ppo": PPO | {"update": {"ratio": "gspo", "reduction": "sequence_sum"}}},
            "`ppo.update`: reduction has no effect with ratio: gspo, where each response counts once; leave it out",
        ),
        (
            {"ppo": PPO | {"update": {"loss": "policy_gradient", "epochs": 4}}},
            "good for one step a rollout: give epochs 1 and minibatches 1",
        ),
        (
            {"ppo": PPO | {"update": {"loss": "policy_gradient", "clip_high": 0.3}}},
            "`ppo.update`: clip_high has no effect with loss: policy_gradient, which has no ratio; leave it out",
        ),
        (
            {"ppo": PPO | {"update": {"loss": "dpo", "clip_low": 0.1}}},
            "`ppo.update`: clip_low has no effect with loss: dpo, which compares whole responses; leave it out",
        ),
        (
            {"ppo": PPO | {"update": {"loss": "dpo"}, "advantage": {"kind": "rloo"}}},
            "`ppo`: advantage has no effect with update.loss: dpo; leave it out",
        ),
        (
            {"ppo": PPO | {"update": {"loss": "dpo"}, "critic": "head"}},
            "`ppo`: critic: head would be trained and never read with update.loss: dpo; leave it out",
        ),
        (
            {"ppo": PPO | {"update": {"loss": "dpo"}, "kl": {"place": "loss"}}},
            "`ppo`: place has no effect with update.loss: dpo, whose beta kl.coef is; leave it out",
        ),
        (
            {"ppo": PPO | {"update": {"loss": "dpo"}, "per_prompt": 1}},
            "`ppo`: update.loss: dpo pairs responses to a prompt: give an even per_prompt (not 1)",
        ),
        (
            {"ppo": PPO | {"update": {"loss": "dpo"}, "kl": {"coef": 0}}},
            "`ppo`: kl.coef is the beta of update.loss: dpo, which must be above 0",
        ),
        (
            {"ppo": PPO | {"shaping": {"running_scale": True, "whiten": True}}},
            "`ppo.shaping`: running_scale has no effect beside whiten",
        ),
        (
            {"ppo": PPO | {"kl": {"place": "loss", "estimator": "k1"}}},
            "`ppo.kl`: the gradient of k1 in the loss is zero in expectation, so it would hold nothing",
        ),
        (
            {"ppo": PPO | {"kl": {"estimator": "token_k3"}}},
            "`ppo.kl`: estimator: token_k3 is a term of the loss; in the reward the estimate is k1",
        ),
        (
            {"ppo": PPO | {"kl": {"place": "loss"}}},
            "`ppo`: kl.place: loss beside whitened advantages acts as kl.coef times the advantages' spread: say",
        ),
        (
            {"ppo": PPO | {"kl": {"place": "loss"}, "advantage": {"kind": "reinforce_pp"}}},
            "`ppo`: kl.place: loss does not go with advantage.kind reinforce_pp",
        ),
        (
            {"ppo": PPO | {"kl": {"kind": "constraint", "target": 1.0, "coef": 0}}},
            "kl.coef 0 cannot adapt with kind: constraint",
        ),
        (
            {"ppo": PPO | {"kl": {"dual_lr": 0.2}}},
            "`ppo.kl`: dual_lr has no effect with kind: fixed; leave it out",
        ),
        (
            {"ppo": PPO | {"kl": {"anneal_from": 1.0}}},
            "`ppo.kl`: kl.anneal_from and kl.anneal_over go together",
        ),
        (
            {"ppo": PPO | {"update": {"loss": "policy_gradient", "minibatches": 4}}},
            "`ppo.update`: loss: policy_gradient is the gradient at the policy that sampled, good for one step",
        ),
        (
            {"ppo": PPO | {"shaping": {"overlong_buffer": 65}}},
            "`ppo`: shaping.overlong_buffer (65) counts the last of the sampling.max_new_tokens (64)",
        ),
        (
            {"ppo": PPO | {"kl": {"kind": "constraint", "target": 1}, "final": "best"}},
            "`ppo`: final: best and evaluate.patience go by score - kl.coef x KL, and with kl.kind: constraint",
        ),
        (
            {"ppo": PPO | {"evaluate": {"stop_at_peak": 2}}},
            "`ppo.evaluate`: stop_at_peak goes by a score that is not trained on: give evaluate.judge another reward",
        ),
        (
            {"ppo": PPO | {"evaluate": PEAK, "reward": [{"function": "keel.demo:polite"}]}},
            "`ppo`: evaluate.stop_at_peak goes by evaluate.utility, keel.demo:polite, which ppo.reward trains on: name",
        ),
        (
            {"ppo": PPO | {"evaluate": PEAK | {"patience": 3}}},
            "`ppo.evaluate`: patience ends the run by the objective, stop_at_peak by the held-out score: give one",
        ),
        (
            {"ppo": PPO | {"evaluate": PEAK, "final": "best"}},
            "`ppo`: final: best hands on the policy of the best objective, evaluate.stop_at_peak that of the highest",
        ),
        (
            {"ppo": PPO | {"evaluate": {"judge": {"model": "reward", "name": "other"}}}},
            "`ppo`: evaluate.judge is other, which ppo.reward trains on: it sees nothing that the score does not",
        ),
        (
            {"ppo": PPO | {"evaluate": {"judge": {"model": "hub/judge", "weight": 2.0}}}},
            "`ppo.evaluate`: weight has no effect on evaluate.judge, which stands alone; leave it out",
        ),
        (
            {"ppo": PPO | {"reward": [{"model": "a/b"}], "evaluate": {"judge": {"model": "reward"}}}, "reward": None},
            "ppo.reward uses the model `reward`, but the recipe has no reward stage",
        ),
        (
            {"ppo": PPO | {"kl": {"kind": "constraint", "target": 1, "coef": 1e-5}}},
            "`ppo.kl`: kl.coef 1e-05 is below kl.min_coef 0.0001; start above it",
        ),
        ({"ppo": PPO | {"policy": "direct"}}, "ppo.policy is `direct`, but the recipe has no direct stage"),
        (
            {"direct": {"data": "a"}, "ppo": None, "reward": None, "evaluate": {"prompts": "p"}},
            "evaluate.reward is missing: the recipe has no ppo and no reward stage whose rewards could judge",
        ),
        # layouts
        (
            {"model": {"base": "m", "lora": {"rank": 8}}},
            "`model`: lora has no effect with tune: full; leave it out",
        ),
        (
            {"model": {"base": "m", "tune": "lora", "lora": {"targets": []}}},
            "`model.lora.targets`: tuple should have at least 1",
        ),
        (
            {"ppo": PPO | {"critic": "none"}},
            "`ppo`: critic: none leaves advantage.kind gae without the values it reads; take reward_to_go, rloo",
        ),
        (
            {"ppo": PPO | {"advantage": {"kind": "reward_to_go"}, "update": {"value_clip": 0.1}}},
            "`ppo`: value_clip has no effect with critic: none; leave it out",
        ),
        ({"ppo": PPO | {"critic_init": "a/b"}}, "`ppo`: critic_init has no effect with critic: head; leave it out"),
        (
            {"ppo": PPO | {"critic": "network", "reward": [{"function": "a:b"}]}},
            "`ppo`: critic: network starts from a reward model, and ppo.reward names none: give critic_init",
        ),
    ],
)
def test_refused_in_one_sentence(stages: dict[str, Any], sentence: str) -> None:
    message = refusal(**stages)
    assert message.startswith("r.yaml: ")
    assert sentence in message
    assert not re.search(r"function-|literal\[|pydantic|Config\b|\n", message)


def test_one_mistake_is_one_fault() -> None:
    """Of the two readings of `reward.data`, only the one that was meant is spoken of."""
    assert refusal(reward={"data": {"pth": "x"}}) == "r.yaml: unknown key `reward.data.pth`; did you mean `path`?"


def test_a_key_that_is_no_text() -> None:
    keys: Any = {3: 4}
    with pytest.raises(UserError, match="`3`: keys should be strings, not 3"):
        parse_recipe(tree() | keys, "r.yaml")


@pytest.mark.parametrize(
    "stages",
    [
        {"ppo": PPO | {"kl": {"kind": "adaptive", "target": 6, "horizon": 64}}},
        {"ppo": PPO | {"advantage": {"kind": "gae", "lam": 0.5}}},
        {"ppo": PPO | {"advantage": {"kind": "n_step", "n": 2, "gamma": 0.9, "whiten": False}}},
        {"ppo": PPO | {"advantage": {"kind": "rloo"}, "update": {"ratio": "gspo"}, "kl": {"place": "loss"}}},
        {"ppo": PPO | {"kl": {"kind": "constraint", "target": 1, "dual_lr": 0.2, "min_coef": 0.01}}},
        {"ppo": PPO | {"kl": {"anneal_from": 1.0, "anneal_over": 9}}},
        {"ppo": PPO | {"update": {"value_clip": 0.1, "critic_lr_scale": 2}}},
        {"ppo": PPO | {"update": {"value_coef": 0}}},
        {"ppo": PPO | {"kl": {"coef": 0}}},
        {"ppo": PPO | {"rollout_batch": 12, "update": {"minibatches": 3}}},
        {"collect": {"prompts": "p", "annotator": {"script": "a:b"}, "sampling": {"top_k": 5, "temperature": 0.7}}},
    ],
)
def test_the_same_keys_are_taken_where_they_have_an_effect(stages: dict[str, Any]) -> None:
    parse_recipe(tree(**stages), "r.yaml")
