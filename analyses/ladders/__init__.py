"""Shared by the analyses of augmentations and of data."""
