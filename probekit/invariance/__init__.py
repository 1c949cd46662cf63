"""Which changes of an image a layer ignores: strength curves, variance, units."""
