"""From a database row to an attribute: the package compares each value with its row's owner and opens it.

Nothing here writes a value.
"""
