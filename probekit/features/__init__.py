"""Images pass once, every tap is read: streaming, extraction and the feature store."""
