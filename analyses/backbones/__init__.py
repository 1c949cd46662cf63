"""Backbones that timm lacks, each a function that returns an nn.Module, for ``file.py:function``."""
