"""The head, from the backbone's features to the class logits."""

from torch import nn

from cls.models.attention import LogitGate


def head_layers(words: str, width: int, classes: int) -> list[nn.Module]:
    """The layers of ``model.head`` for features b width, and the output layer to b classes.

    Words: a number is ``nn.Linear`` of that width; bn, relu, silu; ``dropout:P``.
    "500 relu dropout:0.5" is report 3's V1.
    """
    layers: list[nn.Module] = []
    for word in words.split():
        if word.isdecimal() and int(word) > 0:
            layers.append(nn.Linear(width, int(word)))
            width = int(word)
        elif word == "bn":
            layers.append(nn.BatchNorm1d(width))
        elif word == "relu":
            layers.append(nn.ReLU())
        elif word == "silu":
            layers.append(nn.SiLU())
        else:
            layers.append(nn.Dropout(_dropout(word)))
    return [*layers, nn.Linear(width, classes)]


def _dropout(word: str) -> float:
    name, _, number = word.partition(":")
    try:
        if name == "dropout" and 0.0 < float(number) < 1.0:
            return float(number)
    except ValueError:
        pass
    raise ValueError(
        f"model.head: unknown word {word!r}; use a width such as 500, bn, relu, silu or dropout:P with P from 0 to 1"
    )


def replace_classifier(net: nn.Module, classifier: str, *, words: str, gate: int, classes: int) -> None:
    """Put the head where the backbone's own output layer is; with a gate that layer stays, as the first of the head.

    Keys: no words and no gate give ``fc.weight`` and ``fc.bias`` as in torchvision, all else ``fc.0.`` and so on.
    """
    own = net.get_submodule(classifier)
    if not isinstance(own, nn.Linear):
        raise ValueError(
            f"model.backbone: {classifier} of {type(net).__name__} is no linear layer; use another backbone"
        )
    layers: list[nn.Module] = [own, LogitGate(own.out_features, gate)] if gate else []
    layers += head_layers(words, own.out_features if gate else own.in_features, classes)
    net.set_submodule(classifier, layers[0] if len(layers) == 1 else nn.Sequential(*layers))
