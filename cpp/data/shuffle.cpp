#include "data/shuffle.hpp"

#include <numeric>
#include <utility>
#include <vector>

namespace schuss::data {
namespace {

/// SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014).
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        state_ += 0x9e3779b97f4a7c15;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }

    /// A number below the bound, all alike probable (Lemire, "Fast random integer generation in an
    /// interval", 2019, algorithm 5, with 32 random bits).
    std::uint64_t below(std::uint32_t bound) {
        std::uint64_t product = (next() >> 32) * bound;
        if (static_cast<std::uint32_t>(product) < bound) {
            const std::uint32_t threshold = -bound % bound;
            while (static_cast<std::uint32_t>(product) < threshold) {
                product = (next() >> 32) * bound;
            }
        }
        return product >> 32;
    }

  private:
    std::uint64_t state_;
};

/// So many fit the second-level cache; exchanges among more would wait for memory.
constexpr std::size_t most_at_once = std::size_t{1} << 16;

/// Fisher and Yates's exchanges (Knuth, "The art of computer programming", algorithm 3.4.2P).
void exchange(std::int64_t* order, std::size_t count, Random& random) {
    for (std::size_t i = count; i > 1; --i) {
        std::swap(order[i - 1], order[random.below(static_cast<std::uint32_t>(i))]);
    }
}

/// Fills order with the values, or with their indices where there are none, shuffled. Many are
/// thrown at random into piles, which are then shuffled each: as uniform as exchanges, and memory
/// is read in a few streams (Rao, "Generation of random permutation of given number of elements
/// using random sampling numbers", 1961; Sandelius, "A simple randomization procedure", 1962).
void fill(std::int64_t* order, std::size_t count, const std::int64_t* values, Random& random) {
    const auto value = [values](std::size_t i) {
        return values == nullptr ? static_cast<std::int64_t>(i) : values[i];
    };
    if (count <= most_at_once) {
        for (std::size_t i = 0; i < count; ++i) order[i] = value(i);
        return exchange(order, count, random);
    }
    constexpr std::size_t piles = 256;
    std::vector<std::uint8_t> pile(count);
    std::size_t sizes[piles] = {};
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < count; ++i) {
        if (i % 8 == 0) bytes = random.next();
        pile[i] = static_cast<std::uint8_t>(bytes);
        bytes >>= 8;
        ++sizes[pile[i]];
    }
    std::size_t ends[piles];
    std::exclusive_scan(sizes, sizes + piles, ends, std::size_t{0});
    for (std::size_t i = 0; i < count; ++i) order[ends[pile[i]]++] = value(i);
    for (std::size_t k = 0; k < piles; ++k) {
        std::int64_t* const begin = order + ends[k] - sizes[k];
        if (sizes[k] <= most_at_once) {
            exchange(begin, sizes[k], random);
        } else {
            const std::vector<std::int64_t> before(begin, begin + sizes[k]);
            fill(begin, sizes[k], before.data(), random);
        }
    }
}

}  // namespace

void shuffle(std::int64_t* order, std::size_t count, std::uint64_t seed) {
    Random random(seed);
    fill(order, count, nullptr, random);
}

}  // namespace schuss::data
