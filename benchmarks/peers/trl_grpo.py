"""TRL's GRPOTrainer (trl 1.16): python trl_grpo.py SPEC RESULT"""

import time

from common import Watch, read_spec, training_options, write
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


class Laps:
    """When sampling, scoring and updating ended, and what was done, by watching the methods that do it."""

    def __init__(self, trainer):
        self.sampled = self.trained = 0
        self._trainer = trainer
        self._generate, self._score = trainer._generate, trainer._generate_and_score_completions
        self._loss = trainer._compute_loss
        trainer._generate, trainer._generate_and_score_completions = self.generate, self.score
        trainer._compute_loss = self.loss

    def generate(self, *arguments):
        started = time.perf_counter()
        result = self._generate(*arguments)
        self.sampling = time.perf_counter() - started
        return result

    def score(self, *arguments):
        started = time.perf_counter()
        result = self._score(*arguments)
        self.scored_at = time.perf_counter()
        self.scoring = self.scored_at - started - self.sampling
        return result

    def loss(self, model, inputs):
        completion = int(inputs["completion_mask"].sum())
        self.sampled += completion
        self.trained += completion + int(inputs["prompt_mask"].sum())
        return self._loss(model, inputs)

    def parts(self):
        updating = time.perf_counter() - self.scored_at
        return {"sampling": self.sampling, "scoring": self.scoring, "updating": updating}


def distinct_words(completions, **columns):
    return [float(len(set(completion.split()))) for completion in completions]


def main():
    spec = read_spec()
    path = spec["models"]["policy"]
    options = training_options(
        spec,
        num_generations=spec["per_prompt"],
        max_completion_length=spec["max_length"],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=spec["beta"],
        shuffle_dataset=False,
    )
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(path),
        distinct_words,
        GRPOConfig(**options),
        train_dataset=Dataset.from_dict({"prompt": spec["prompts"]}),
        processing_class=AutoTokenizer.from_pretrained(path, padding_side="left"),
    )
    laps = Laps(trainer)

    def counts():
        sampled, trained = laps.sampled, laps.trained
        laps.sampled = laps.trained = 0
        return {"completions": spec["batch"], "tokens sampled": sampled, "tokens trained": trained}

    watch = Watch(counts)
    watch.parts = laps.parts
    trainer.add_callback(watch)
    trainer.train()
    write("trl", watch.rounds, packages=["trl"])


main()
