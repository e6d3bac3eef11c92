"""Sampling images from trained generators."""
