"""Pretraining arms, alike in everything but the objective."""
