"""The CUDA half: what it should reach by calculation."""
