"""Processes and the work they share: who carries which micro-batches, and how their results become one sum."""
