"""What an application calls: enroll, unlock, change a secret, and the rest of `Envelope`.

They may use every room below; nothing but `hooks` stands above.
"""
