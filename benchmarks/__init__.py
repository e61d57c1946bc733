"""The cost of encryption: the library, its peers and bare AES-GCM, side by side in one run."""
