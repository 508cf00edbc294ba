"""From the bytes of an image file to the uint8 pixels a model sees: decode, operations, parameters, execution."""
