// Random bits from a counter: the same for an element whoever computes it, and when (the idea of
// Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Included, as the rules are,
// inside an anonymous namespace.
#pragma once

/// Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014: the finaliser of
/// SplitMix64.
inline std::uint64_t splitmix64(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/// The key of 2^32 elements, from that of a stream and what their indices have in common.
inline std::uint64_t key_of(std::uint64_t stream, std::uint64_t index) {
    return splitmix64(stream ^ (index >> 32));
}

/// 16 bits for each index: a hash of what one half of the key and the index make, hashed with the
/// other half. As few operations as will do, since a step with such state waits for them: over 2^20
/// elements no two places are correlated by more than 0.03, and none that are less than 4,096 apart
/// measurably (tests/test_low_precision.py); that is enough for rounding.
struct RandomBits {
    std::uint32_t add, flip;

    RandomBits(std::uint64_t key)
        : add(static_cast<std::uint32_t>(key)), flip(static_cast<std::uint32_t>(key >> 32)) {}

    /// Where the sequence of an index begins, and how it goes on from one index to the next.
    static constexpr std::uint32_t stride = 0x7feb352du;
    std::uint32_t begin(std::uint32_t index) const { return index * stride + add; }

    std::uint32_t at(std::uint32_t x) const { return (x ^ (x >> 13) ^ flip) * 0xd35a2d97u >> 16; }
};
