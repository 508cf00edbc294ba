"""Processes, micro-batches and the sum of their gradients."""
