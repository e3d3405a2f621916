"""The names that make up a run's directory, for those who write it and those who read it."""

STAGES = ("sft", "collect", "reward", "direct", "ppo", "evaluate")  # in the order in which they build on each other

RUN = "run.json"
RECIPE = "recipe.json"

IDENTITY = "identity.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
CHECKPOINTS = "checkpoints"
FAULTS = "faults"
CLOCK = "clock.json"
DONE = "done.json"
FORKED = "forked_from.json"
