"""Keel: align a language model with what people prefer, on a KL leash."""

__version__ = "0.1.0"
