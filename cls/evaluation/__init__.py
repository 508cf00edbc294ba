"""What a trained model is worth: inference, metrics, statistics, plots, the report page."""
