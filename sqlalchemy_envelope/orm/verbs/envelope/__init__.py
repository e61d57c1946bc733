"""The two envelopes, and the verbs that they have: each checks what it is given, and carries out steps."""
