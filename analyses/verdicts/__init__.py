"""What findings share: rules as data, and the verdict they give on a table."""
