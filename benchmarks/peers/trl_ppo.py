"""TRL's PPOTrainer (trl 1.12): python trl_ppo.py SPEC RESULT"""

from common import Watch, now, read_spec, training_options, write
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class Laps:
    """When sampling and updating began and ended, and what was done, by watching the functions that do it."""

    def __init__(self, trainer, pad):
        self.sampled = self.trained = 0
        self.updating_from = None
        generate, forward, accumulate = (
            ppo_trainer.batch_generation,
            ppo_trainer.forward,
            trainer.accelerator.accumulate,
        )

        def watched_generation(model, queries, *rest):
            self.round_from = now()
            responses, logits = generate(model, queries, *rest)
            self.sampled_at = now()
            self.sampled = int((responses[:, queries.shape[1] :] != pad).sum())
            self.updating_from = None
            return responses, logits

        def watched_forward(model, rows, pad_id):
            if isinstance(model, ppo_trainer.PolicyAndValueWrapper):
                self.trained += int((rows != pad).sum())
            return forward(model, rows, pad_id)

        def watched_accumulate(*models):
            self.updating_from = self.updating_from or now()
            return accumulate(*models)

        ppo_trainer.batch_generation, ppo_trainer.forward = watched_generation, watched_forward
        trainer.accelerator.accumulate = watched_accumulate

    def parts(self):
        return {
            "sampling": self.sampled_at - self.round_from,
            "scoring": self.updating_from - self.sampled_at,
            "updating": now() - self.updating_from,
        }


def main():
    spec = read_spec()
    paths, batch = spec["models"], spec["batch"]
    tokenizer = AutoTokenizer.from_pretrained(paths["policy"], padding_side="left")
    rows = [tokenizer(text)["input_ids"] for text in spec["prompts"]]
    # A batch is one forward here, so that each minibatch is one optimiser step: with gradient accumulation TRL steps
    # once in so many minibatches.
    config = PPOConfig(
        **training_options(spec),
        num_ppo_epochs=spec["epochs"],
        num_mini_batches=spec["minibatches"],
        total_episodes=len(rows),
        local_rollout_forward_batch_size=batch,
        response_length=spec["max_length"],
        temperature=1.0,
        stop_token="eos",
        num_sample_generations=0,
    )
    trainer = PPOTrainer(
        config,
        tokenizer,
        AutoModelForCausalLM.from_pretrained(paths["policy"]),
        AutoModelForCausalLM.from_pretrained(paths["policy"]),
        AutoModelForSequenceClassification.from_pretrained(paths["reward"]),
        Dataset.from_dict({"input_ids": rows}),
        AutoModelForSequenceClassification.from_pretrained(paths["value"]),
    )
    laps = Laps(trainer, tokenizer.pad_token_id)

    def counts():
        trained, laps.trained = laps.trained, 0
        return {"episodes": batch, "tokens sampled": laps.sampled, "tokens trained": trained}

    watch = Watch(counts)
    watch.parts = laps.parts
    trainer.add_callback(watch)
    trainer.train()
    write("trl", watch.rounds, packages=["trl"])


main()
