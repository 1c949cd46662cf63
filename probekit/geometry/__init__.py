"""How images and classes lie in the feature space of each layer: what varies inside a class."""
