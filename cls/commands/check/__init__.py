"""``cls check``: corrupt, unusual and duplicate images, and labels in doubt."""
