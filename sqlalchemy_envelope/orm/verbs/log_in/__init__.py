"""Owners are enrolled and unlocked, and refused evenly."""
