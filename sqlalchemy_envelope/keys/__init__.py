"""Keys: their hierarchy, slots, grants, and the keyring of a session. Rows come and go as frozen records.

This package knows no database, and no provider's SDK.
"""
