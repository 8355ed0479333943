"""schuss compared with NumPy and every installed peer on the same work: `python -m benchmarks`."""
