"""The same work by schuss, NumPy and every installed peer, side by side: `python -m benchmarks`."""
