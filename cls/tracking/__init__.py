"""The run directory and its records; W&B and TensorBoard mirror them."""
