"""The exact laboratory: worlds small enough to list every response, and what each algorithm must reach there."""
