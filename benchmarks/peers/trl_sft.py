"""TRL's SFTTrainer (trl 1.16), packed or padded: python trl_sft.py SPEC RESULT"""

from common import Watch, WatchedLoss, read_spec, training_options, write
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer


def main():
    spec = read_spec()
    rows, path = spec["rows"], spec["models"]["policy"]
    packing = spec["mode"] == "packed"
    options = training_options(spec, max_length=spec["longest"], packing=packing)
    options["max_steps"] = spec["steps"] * (spec["rounds"] + 1)
    if packing:  # a batch counts packed rows there: as many as hold the tokens of a step
        mean = sum(map(len, rows)) / len(rows)
        options["per_device_train_batch_size"] = round(spec["batch"] * mean / spec["longest"])
    else:
        options["train_sampling_strategy"] = "sequential"
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(path),
        SFTConfig(**options),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=AutoTokenizer.from_pretrained(path),
    )
    loss = WatchedLoss(trainer)
    watch = Watch(lambda: {"tokens trained": loss.taken()}, spec["steps"])
    trainer.add_callback(watch)
    trainer.train()
    write(f"trl {spec['mode']}", watch.rounds, loss.first, packages=["trl"])


main()
