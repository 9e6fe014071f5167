"""Scoring: every variant is run as shipped, in its own runtime, in a child process."""
