"""How alike layers of one or several backbones are, over the same images."""
