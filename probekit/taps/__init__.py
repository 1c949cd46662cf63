"""Where activations are read and how they become vectors."""
