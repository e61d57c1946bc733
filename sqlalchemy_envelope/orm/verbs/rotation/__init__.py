"""Keys are replaced, counted and destroyed."""
