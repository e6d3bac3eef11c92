"""Readers of weights in the formats of other programs, which run nothing that a file holds."""
