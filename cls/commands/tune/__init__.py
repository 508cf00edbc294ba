"""``cls tune``: the learning rate for this network, these images and this length of training."""
