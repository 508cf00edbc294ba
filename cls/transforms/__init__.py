"""From the bytes of an image file to a model's uint8 pixels: decode, operations, parameters, execution."""
