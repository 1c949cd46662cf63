"""Peers of the speed analysis, a script each, and how they race."""
