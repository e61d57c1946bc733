"""The command `demo`: a small clinic, what an attacker sees of it, and what each attack comes to.

Nothing here is used by another command, and nothing here needs more than the public names of the library.
"""
