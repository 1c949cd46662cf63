"""Where in the image a probe finds what it reads."""
