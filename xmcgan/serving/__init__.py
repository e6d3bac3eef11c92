"""Trained models behind HTTP: a service, and a page to play with on top of it."""
