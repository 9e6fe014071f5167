"""Intake: a file of the person's own becomes a checked source model, or one clear line."""
