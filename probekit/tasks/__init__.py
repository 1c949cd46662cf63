"""Tasks: target, head, loss and metric. They know nothing of how a backbone was trained."""
