"""Text encoders: a prompt in, rows of text for cross-attention out."""
