"""What is locked and why, and what a grant has come to: answers from the rows, without a key."""
