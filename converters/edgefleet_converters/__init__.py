"""Converters: one trained model in, a package of measured variants out."""
