"""Bytes in, bytes out; alone imports `cryptography` and `argon2`. Knows no database.

The formats are specified in docs/reference/wire-format.md; section numbers below refer to it.
"""
