"""The ways to an owner's keys: secrets, recovery codes, escrow, emergency access."""
