"""From a config to a network: backbones, pretrained weights, attention, heads, frozen parts, the loss."""
