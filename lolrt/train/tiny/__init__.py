"""Training of the embedded model `tiny`: `python -m lolrt.train.tiny`."""
