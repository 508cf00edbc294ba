from cls.api import Comparison as Comparison
from cls.api import Model as Model
from cls.api import Prediction as Prediction
from cls.api import compare as compare
from cls.api import load as load
from cls.api import train as train

__version__: str
__all__ = ["Comparison", "Model", "Prediction", "compare", "load", "train"]
