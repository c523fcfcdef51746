"""`journey`, the embedded model of an endless journey: its world, its data and its training."""
