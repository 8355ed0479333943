#include "data/shuffle.hpp"

#include <numeric>
#include <utility>
#include <vector>

namespace schuss::data {
namespace {

#include "numbers/random.hpp"

/// A generator of random numbers: SplitMix64.
class Random {
  public:
    explicit Random(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next() {
        const std::uint64_t result = splitmix64(state_);
        state_ += splitmix64_increment;
        return result;
    }

    /// A number from 0 to bound-1, uniformly distributed (Lemire, "Fast random integer generation
    /// in an interval", 2019, algorithm 5, with 32 random bits).
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

/// This many indices fit into the second-level cache. Random exchanges among more would wait for
/// memory.
constexpr std::size_t max_in_cache = std::size_t{1} << 16;

/// The shuffle of Fisher and Yates (Knuth, "The art of computer programming", algorithm 3.4.2P).
void shuffle_in_cache(std::int64_t* order, std::size_t count, Random& random) {
    for (std::size_t i = count; i > 1; --i) {
        std::swap(order[i - 1], order[random.below(static_cast<std::uint32_t>(i))]);
    }
}

/// Fills order with the shuffled values, or with shuffled indices if values is null. More values
/// than fit into the cache are first distributed at random over piles, and each pile is then
/// shuffled: this is as uniform, and reads memory in a few streams (Rao, "Generation of random
/// permutation of given number of elements using random sampling numbers", 1961; Sandelius, "A
/// simple randomization procedure", 1962).
void fill(std::int64_t* order, std::size_t count, const std::int64_t* values, Random& random) {
    const auto value = [values](std::size_t i) {
        return values == nullptr ? static_cast<std::int64_t>(i) : values[i];
    };
    if (count <= max_in_cache) {
        for (std::size_t i = 0; i < count; ++i) order[i] = value(i);
        return shuffle_in_cache(order, count, random);
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
        if (sizes[k] <= max_in_cache) {
            shuffle_in_cache(begin, sizes[k], random);
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
