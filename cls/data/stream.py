from cls import config
from cls.data.part import Part


def streamed(parts: dict[str, Part], data: config.Data) -> dict[str, Part]:
    return parts
