"""Layer 3: which pages are missing, who goes first, how fast."""
