"""One optimizer over several processes: schuss.mpi and others, measured and on paper.

`command` starts the ranks and collects the figures; `rank` is the program of a rank; `ways` and
`torch_ways` have the contenders; `paper` estimates a step on many machines.
"""
