"""The names that make up a run's directory, for those who write it and those who read it."""

STAGES = ("sft", "collect", "reward", "direct", "ppo", "evaluate")  # in the order in which they build on each other

LOCK = ".lock"  # held by the process that works on the run, whose number it has
RUN = "run.json"
RECIPE = "recipe.json"
ENDED = "ended.json"  # what ended the run early

IDENTITY = "identity.json"
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
CHECKPOINTS = "checkpoints"
FAULTS = "faults"
CLOCK = "clock.json"
PROGRESS = "progress.json"  # while it works
DONE = "done.json"
FORKED = "forked_from.json"
