"""Frozen networks, the files they come from, and nothing about what they are used for."""
