"""A reading circle: its members read what is written there, and nobody else does."""
