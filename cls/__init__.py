"""cls: fine-tune image classifiers; a run is a pure function of (config, data, seed)."""

import logging

__version__ = "0.1.0"


def _clean(record: logging.LogRecord) -> bool:
    """Names of classes and files stand in log lines without what a terminal obeys."""
    from cls.runtime.console import clean  # only where there is something to log

    record.msg, record.args = clean(record.getMessage()), None
    return True


logging.getLogger("cls").addFilter(_clean)
