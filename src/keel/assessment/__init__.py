"""How far a reward model can be trusted: what its scores say, counted. No model, no torch."""
