"""Algorithms side by side from one start: the same supervised policy, reward model and comparisons, seeds apart."""
