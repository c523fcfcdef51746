"""Video files in and out."""

# H.264's constant rate factor, 1 to 51, at which the encoder's loss is not seen beside the VAE's.
CRF = 16
