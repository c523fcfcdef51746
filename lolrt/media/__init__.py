"""Reads and writes video files."""

# H.264's constant rate factor, 1 to 51. At this value the loss of the encoder is not visible beside the loss of the VAE.
CRF = 16
