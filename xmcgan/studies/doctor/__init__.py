"""What is wrong with an installation, with data or with a run, in plain words."""
