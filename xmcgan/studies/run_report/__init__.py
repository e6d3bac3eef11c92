"""A run's folder in one page: its course, pictures, scores, and what it was started with."""
