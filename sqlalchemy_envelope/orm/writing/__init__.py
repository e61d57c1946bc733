"""From an attribute to a statement's parameters: every value is encrypted, or its statement refused.

Nothing here reads a value back.
"""
