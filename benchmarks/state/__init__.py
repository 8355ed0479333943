"""What the number format of the state does to a training: evidence, not times.

`python -m benchmarks state` runs it; see `command`.
"""
