"""TRL's DPOTrainer (trl 1.16), its reference computed in every step: python trl_dpo.py SPEC RESULT"""

from common import Watch, WatchedLoss, read_spec, training_options, write
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer


def as_text(tokens):
    return "".join(f" w{token}" for token in tokens)


def main():
    spec = read_spec()
    paths = spec["models"]
    options = training_options(spec, max_length=None, beta=spec["beta"], train_sampling_strategy="sequential")
    columns = {
        "prompt": [as_text(tokens) for tokens in spec["prompts"]],
        "chosen": [as_text(tokens) for tokens in spec["chosen"]],  # TRL ends them itself
        "rejected": [as_text(tokens) for tokens in spec["rejected"]],
    }
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(paths["policy"]),
        AutoModelForCausalLM.from_pretrained(paths["reference"]),
        DPOConfig(**options),
        train_dataset=Dataset.from_dict(columns),
        processing_class=AutoTokenizer.from_pretrained(paths["policy"]),
    )
    loss = WatchedLoss(trainer)
    pairs = spec["batch"] * spec["steps"]
    watch = Watch(lambda: {"pairs": pairs, "tokens trained": loss.taken()}, spec["steps"])
    trainer.add_callback(watch)
    trainer.train()
    write("trl", watch.rounds, loss.first, packages=["trl"])


main()
