"""What a run has logged, judged: over-optimisation, and what else is out of its range; for stages, pages, reports."""
