"""Stands in for LiteRT in a worker process."""
