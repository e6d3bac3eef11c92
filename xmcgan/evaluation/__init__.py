"""Scores of images: how real they look and how well they fit their captions."""
