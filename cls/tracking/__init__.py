"""The run directory and what is written to it while a run goes on; W&B and TensorBoard mirror it."""
