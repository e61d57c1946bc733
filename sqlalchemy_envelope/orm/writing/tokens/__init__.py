"""The tags of token indexes, kept by every write of the texts that they index."""
