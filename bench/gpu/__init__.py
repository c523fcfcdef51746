"""The CUDA part of the suite: its speed on a GPU, measured, and the speed that is predicted for it."""
