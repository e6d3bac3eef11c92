"""How fast: each measure beside its literal counterpart, in one process, in turns."""
