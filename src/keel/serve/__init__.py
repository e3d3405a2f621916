"""Keel's sampler and reward models behind HTTP, in the shape that OpenAI's clients and vLLM's speak.

Only `models` imports torch; `requests` and `answers` are the protocol, `worker` the one thread that owns the models.
"""
