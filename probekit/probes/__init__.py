"""Small models fitted on frozen features, with the controls that make their scores mean something."""
