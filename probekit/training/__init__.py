"""What every optimisation shares: augmentation, schedules, one loop in steps, exact snapshots."""
