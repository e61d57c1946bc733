"""What is open here and now, and by which policy.

This room knows no column, no row and no key table. It knows the names of owners, and the keys that serve
them.
"""
