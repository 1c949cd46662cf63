"""Whether a backbone gets its images as it was trained to: by its own classifier, or by its batch norm."""
