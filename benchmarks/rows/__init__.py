"""Steps of a large table of which a mini-batch touches some rows.

`draws` makes the mini-batches; `ways`, `numpy_ways` and `torch_ways` have the contenders; `command`
checks and times them.
"""
