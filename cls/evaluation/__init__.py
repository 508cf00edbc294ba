"""Inference, metrics, statistics, plots and the report page."""
