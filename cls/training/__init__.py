"""The state of a training run, its steps and schedule, its checkpoints and its log."""
