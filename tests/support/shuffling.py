"""The order of examples that a seed gives, in plain Python."""


class SplitMix64:
    """The generator of Steele, Lea & Flood, as the literature has it."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def next(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) % 2**64
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    def below(self, bound: int) -> int:
        while True:
            high, low = divmod((self.next() >> 32) * bound, 2**32)
            if low >= 2**32 % bound:
                return high


def shuffled(order: list[int], random: SplitMix64) -> list[int]:
    """Return a random permutation.

    Up to 65,536 elements are shuffled by exchanges from the end (Fisher & Yates). More are first
    thrown into 256 piles, by one random byte each, and each pile is shuffled.
    """
    if len(order) <= 65_536:
        for i in range(len(order) - 1, 0, -1):
            j = random.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order
    piles: list[list[int]] = [[] for _ in range(256)]
    for start in range(0, len(order), 8):
        throw = random.next().to_bytes(8, "little")
        for byte, index in zip(throw, order[start : start + 8], strict=False):
            piles[byte].append(index)
    return [index for pile in piles for index in shuffled(pile, random)]
