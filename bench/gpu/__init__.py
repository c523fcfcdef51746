"""The CUDA half: what it reaches on a GPU, measured, and what it should reach by calculation."""
