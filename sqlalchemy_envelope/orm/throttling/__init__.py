"""How often an unlock may be tried: from one source, at one account, and by both together.

This room knows no owner and no key. It counts under names that say nothing of whom they stand for.
"""
