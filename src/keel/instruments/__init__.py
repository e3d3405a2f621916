"""Over-optimisation, seen in what a run has logged: alarms and fits, for the stage, the terminal and the report."""
