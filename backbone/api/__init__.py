"""Layer 4: what a person types and gets back."""
