"""`python -m keel` is the console script."""

from keel.cli import main

main()
