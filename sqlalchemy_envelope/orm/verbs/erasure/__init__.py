"""An owner is erased: what is lost, what remains, and the proof."""
