"""cls: fine-tune image classifiers; a run is a pure function of (config, data, seed)."""

__version__ = "0.1.0"
