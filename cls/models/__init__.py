"""Backbones, pretrained weights, attention, heads, frozen parts, sharding, the loss."""
