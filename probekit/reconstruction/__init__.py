"""What a layer still knows about the image: how much of its pixels can be read back."""
