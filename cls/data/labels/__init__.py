"""Labels from label files or file names (``data.labels``, ``data.label_pattern``)."""
