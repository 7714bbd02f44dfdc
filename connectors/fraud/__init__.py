"""Ways in for card transactions."""
