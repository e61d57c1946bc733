"""The command `demo`: a small clinic, an attacker's view of it, and the result of each attack.

No other command uses this package, and this package needs only the public names of the library.
"""
