"""What `scripts/benchmark.py` and `scripts/count_collectives.py` measure."""
