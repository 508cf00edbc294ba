"""What a run needs before it is queued, and whether a SLURM script asks for it."""
