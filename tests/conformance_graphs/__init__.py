"""Whole graphs through the lowering: seeded random ones, and real architectures; `python -m conformance_graphs`."""
