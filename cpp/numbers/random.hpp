// Random bits from a counter: an element gets the same bits on any thread and in any order
// (the idea of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). Included inside
// an anonymous namespace, like the rules.
#pragma once

/// SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014): the
/// output for a state, and the increment of the state.
constexpr std::uint64_t splitmix64_increment = 0x9e3779b97f4a7c15u;
inline std::uint64_t splitmix64(std::uint64_t state) {
    std::uint64_t x = state + splitmix64_increment;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/// The key for 2^32 elements, from the key of their stream and the upper half of their indices.
inline std::uint64_t key_of(std::uint64_t stream, std::uint64_t index) {
    return splitmix64(stream ^ (index >> 32));
}

/// Random bits for each index, 16 or 32: a hash of the index and one half of the key, hashed with
/// the other half. Kept to few operations, since stochastic rounding is the bottleneck of a step
/// with such states. Over 2^20 elements, the upper 16 bits of no two positions have a correlation
/// above 0.03, and those of positions less than 4,096 apart have no measurable one
/// (tests/test_low_precision.py). With the halves exchanged, the correlation is at most 0.085, and
/// none is measurable within a block. Rounding needs no more.
struct RandomBits {
    std::uint32_t add, flip;

    RandomBits(std::uint64_t key)
        : add(static_cast<std::uint32_t>(key)), flip(static_cast<std::uint32_t>(key >> 32)) {}

    /// The counter of the first index, and its increment from one index to the next.
    static constexpr std::uint32_t stride = 0x7feb352du;
    std::uint32_t begin(std::uint32_t index) const { return index * stride + add; }

    template <typename Bits>
    Bits all(Bits x) const {
        return (x ^ (x >> 13) ^ flip) * 0xd35a2d97u;
    }
    std::uint32_t at(std::uint32_t x) const { return all(x) >> 16; }
};
