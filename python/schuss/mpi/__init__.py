"""One optimizer for many processes, by MPI.

Each process, or rank, computes gradients of its own. A step takes their mean. It is divided among
the ranks: each sums its part of the gradients, keeps the state of this part and steps it, and sends
the stepped parameters to the others (Rajbhandari et al., "ZeRO: memory optimizations toward
training trillion parameter models", 2020).
"""

from schuss.mpi.sharded import Sharded

__all__ = ["Sharded"]
