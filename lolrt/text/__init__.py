"""Text encoders: they turn a prompt into rows of text for cross-attention."""
