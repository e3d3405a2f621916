"""The app's HTTP side. What it calls knows nothing of HTTP."""
