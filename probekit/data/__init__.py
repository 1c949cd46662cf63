"""Images, targets and splits: what goes into a backbone and what a probe is asked to predict."""
