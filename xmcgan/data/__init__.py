"""Data sets in ArrayRecord files, and the pipeline that turns them into batches."""
