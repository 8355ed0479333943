"""The same work by schuss, NumPy and the memory's limit, side by side: `python -m benchmarks`."""
