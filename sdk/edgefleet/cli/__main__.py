"""`python -m edgefleet.cli`: the same command where the script is not on the PATH."""

from edgefleet.cli import main

main()
