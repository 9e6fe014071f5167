"""How long tests wait for what is certain to come: an end for what hangs, and never a measure of speed."""

# A shared machine may stand still for many seconds. Below the limit of one test, so that it fails with its own words.
PATIENCE_S = 90.0
