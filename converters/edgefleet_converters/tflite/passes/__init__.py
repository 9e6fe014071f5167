"""The lowering's passes, one per file: each takes a graph and returns another that computes the same."""
