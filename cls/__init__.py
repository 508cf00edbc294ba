"""cls: fine-tune image classifiers; a run is a pure function of (config, data, seed).

    import cls

    run = cls.train("mlp-head", data="photos", epochs=3)    # the run directory
    model = cls.load(run)
    print(model.predict("cat.jpg").label)

:mod:`cls.api` has these functions; it is loaded at their first use.
"""

import importlib
import logging
from typing import Any

__version__ = "0.1.0"
__all__ = ["Comparison", "Model", "Prediction", "compare", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in (*__all__, "api"):
        api = importlib.import_module("cls.api")
        return api if name == "api" else getattr(api, name)
    raise AttributeError(f"module 'cls' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _clean(record: logging.LogRecord) -> bool:
    """Names of classes and files stand in log lines without what a terminal obeys."""
    from cls.runtime.console import clean  # only where there is something to log

    record.msg, record.args = clean(record.getMessage()), None
    return True


logging.getLogger("cls").addFilter(_clean)
