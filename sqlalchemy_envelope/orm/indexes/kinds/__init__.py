"""The kinds of blind indexes: what each hashes of a value, and which comparisons it answers."""
