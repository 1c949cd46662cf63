"""Frozen pretrained bodies: where their weights come from, how images are prepared for them."""
