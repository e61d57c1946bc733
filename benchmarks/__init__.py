"""What encryption costs: the library, its peers and bare AES-GCM, side by side in one run."""
