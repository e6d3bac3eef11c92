"""What a config needs on a machine that is not here: compiled for it, from shapes alone."""
