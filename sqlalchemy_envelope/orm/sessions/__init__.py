"""The three kinds of unlocked session: opened with a secret, write-only, and a server's.

They hold keys; the verbs that an application calls stand above them.
"""
