"""Architectures held against what timm declares and computes."""
