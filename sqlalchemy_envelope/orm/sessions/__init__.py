"""The three kinds of unlocked session: opened with a secret, write-only, and server mode.

Unlocked sessions hold keys. The verbs that an application calls are built on them.
"""
