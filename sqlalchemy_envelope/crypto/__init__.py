"""Cryptography: bytes in, bytes out. Alone imports `cryptography` and `argon2`; knows no database.

docs/reference/wire-format.md specifies the formats; "section 4" in these modules is a section of that page.
"""
