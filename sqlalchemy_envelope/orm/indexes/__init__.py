"""Blind indexes: they find encrypted values again, and keep themselves in step with them.

The application declares a `BlindIndex` column beside an encrypted column. A write stores a tag there, which
is a keyed hash of the value. A comparison on the encrypted column becomes one on the tags.
"""
