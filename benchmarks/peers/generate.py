"""transformers' generate: python generate.py SPEC RESULT"""

import time

import torch
from common import read_spec, write
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main():
    spec = read_spec()
    path = spec["models"][spec["policy"]]
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    batch, rounds = spec["batch"], []
    for start in range(0, len(spec["prompts"]), batch):
        started = time.perf_counter()
        inputs = tokenizer(spec["prompts"][start : start + batch], return_tensors="pt", padding=True)
        tokens = model.generate(**inputs, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=spec["max_length"])
        responses = tokens[:, inputs["input_ids"].shape[1] :]
        tokenizer.batch_decode(responses, skip_special_tokens=True)
        seconds = time.perf_counter() - started
        counts = {"responses": batch, "tokens sampled": int((responses != tokenizer.pad_token_id).sum())}
        rounds.append({"seconds": seconds, "counts": counts, "parts": {}})
    write("transformers", rounds)


main()
