"""TRL's RewardTrainer (trl 1.16): python trl_reward.py SPEC RESULT"""

from common import Watch, WatchedLoss, read_spec, training_options, write
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer


def main():
    spec = read_spec()
    path = spec["models"]["reward"]
    options = training_options(spec, max_length=None, train_sampling_strategy="sequential")
    trainer = RewardTrainer(
        AutoModelForSequenceClassification.from_pretrained(path),
        RewardConfig(**options),
        train_dataset=Dataset.from_dict({"chosen_ids": spec["chosen"], "rejected_ids": spec["rejected"]}),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    loss = WatchedLoss(trainer)
    pairs = spec["batch"] * spec["steps"]
    watch = Watch(lambda: {"pairs": pairs, "tokens trained": loss.taken()}, spec["steps"])
    trainer.add_callback(watch)
    trainer.train()
    write("trl", watch.rounds, loss.first, packages=["trl"])


main()
