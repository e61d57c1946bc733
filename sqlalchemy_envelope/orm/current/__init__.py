"""What is open here and now, and by which policy.

No column, no row and no key table is known here: only names of owners and the keys that serve them.
"""
