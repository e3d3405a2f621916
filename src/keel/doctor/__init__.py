"""Is everything there that a run needs? Each check gives one finding; nothing is trained."""
