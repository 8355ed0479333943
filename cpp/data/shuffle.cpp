#include "data/shuffle.hpp"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "data/sharing.hpp"

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

    /// The generator after this many numbers.
    Random after(std::uint64_t numbers) const {
        return Random(state_ + numbers * splitmix64_increment);
    }

    bool operator==(const Random&) const = default;

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

constexpr std::size_t piles = 256;
using Sizes = std::array<std::size_t, piles>;

/// Calls visit(i, pile) for each i from begin to end, with a pile drawn at random for each. begin
/// is a multiple of 8.
template <class Visit>
void draw_piles(std::size_t begin, std::size_t end, const Random& random, const Visit& visit) {
    Random own = random.after(begin / 8);
    std::uint64_t bytes = 0;
    for (std::size_t i = begin; i < end; ++i) {
        if (i % 8 == 0) bytes = own.next();
        visit(i, static_cast<std::uint8_t>(bytes));
        bytes >>= 8;
    }
}

/// Distributes values, or indices if values is null, at random over piles, which lie one after the
/// other. Returns the sizes of the piles. Threads count and distribute a part each.
Sizes distribute(std::int64_t* order, std::size_t count, const std::int64_t* values, Random& random,
                 Sharing sharing) {
    const std::size_t parts = sharing.threads > 1 ? 4 * sharing.threads : 1;
    const std::size_t part = (count / parts / 8 + 1) * 8;
    std::vector<Sizes> ends(parts);
    const auto of_part = [&](std::size_t k, const auto& visit) {
        draw_piles(std::min(k * part, count), std::min((k + 1) * part, count), random, visit);
    };
    run_tasks(parts, sharing, [&](std::size_t k, std::size_t) {
        Sizes sizes = {};
        of_part(k, [&](std::size_t, std::uint8_t pile) { ++sizes[pile]; });
        ends[k] = sizes;
    });
    Sizes sizes = {};
    std::size_t sum = 0;
    for (std::size_t pile = 0; pile < piles; ++pile) {
        for (Sizes& each : ends) {
            sizes[pile] += each[pile];
            sum += std::exchange(each[pile], sum);
        }
    }
    run_tasks(parts, sharing, [&](std::size_t k, std::size_t) {
        Sizes end = ends[k];
        of_part(k, [&](std::size_t i, std::uint8_t pile) {
            order[end[pile]++] = values == nullptr ? static_cast<std::int64_t>(i) : values[i];
        });
    });
    random = random.after((count + 7) / 8);
    return sizes;
}

/// Shuffles piles that fit into the cache, several at a time: all but rarely, a pile of n values
/// takes n-1 numbers, which tells where the numbers of the next pile begin. Where it took more, the
/// piles after it that were shuffled too are restored.
void shuffle_piles(std::int64_t* order, const Sizes& sizes, Random& random, Sharing sharing) {
    constexpr std::size_t values_per_thread = 16384;
    const std::size_t largest =
        std::max(*std::max_element(sizes.begin(), sizes.end()), std::size_t{1});
    const std::size_t at_once =
        sharing.threads > 1 ? sharing.threads * (1 + values_per_thread / largest) : 1;
    struct Pile {
        std::int64_t* begin;
        std::size_t size;
        Random first, next;
        std::vector<std::int64_t> before;
    };
    std::vector<Pile> shuffled(at_once, {nullptr, 0, random, random, {}});
    for (Pile& pile : shuffled) pile.before.reserve(at_once > 1 ? largest : 0);
    for (std::size_t k = 0; k < piles;) {
        const std::size_t count = std::min(at_once, piles - k);
        std::int64_t* begin = order;
        Random first = random;
        for (std::size_t i = 0; i < count; ++i) {
            const std::size_t size = sizes[k + i];
            shuffled[i].begin = std::exchange(begin, begin + size);
            shuffled[i].size = size;
            shuffled[i].first = std::exchange(first, first.after(size > 0 ? size - 1 : 0));
        }
        run_tasks(count, sharing, [&](std::size_t i, std::size_t) {
            auto& [values, size, from, next, before] = shuffled[i];
            if (at_once > 1) before.assign(values, values + size);
            next = from;
            shuffle_in_cache(values, size, next);
        });
        std::size_t right = 0;
        for (; right < count && shuffled[right].first == random; ++right, ++k) {
            random = shuffled[right].next;
            order += shuffled[right].size;
        }
        for (std::size_t i = right; i < count; ++i) {
            std::copy(shuffled[i].before.begin(), shuffled[i].before.end(), shuffled[i].begin);
        }
    }
}

/// Fills order with the shuffled values, or with shuffled indices if values is null. More values
/// than fit into the cache are first distributed at random over piles, and each pile is then
/// shuffled: this is as uniform, and reads memory in a few streams (Rao, "Generation of random
/// permutation of given number of elements using random sampling numbers", 1961; Sandelius, "A
/// simple randomization procedure", 1962).
void fill(std::int64_t* order, std::size_t count, const std::int64_t* values, Random& random) {
    if (count <= max_in_cache) {
        for (std::size_t i = 0; i < count; ++i) {
            order[i] = values == nullptr ? static_cast<std::int64_t>(i) : values[i];
        }
        return shuffle_in_cache(order, count, random);
    }
    const Sharing sharing = sharing_of(2 * count * sizeof(std::int64_t));
    const Sizes sizes = distribute(order, count, values, random, sharing);
    if (*std::max_element(sizes.begin(), sizes.end()) <= max_in_cache) {
        return shuffle_piles(order, sizes, random, sharing);
    }
    for (const std::size_t size : sizes) {
        const std::vector<std::int64_t> before(order, order + size);
        fill(order, size, before.data(), random);
        order += size;
    }
}

}  // namespace

void shuffle(std::int64_t* order, std::size_t count, std::uint64_t seed) {
    Random random(seed);
    fill(order, count, nullptr, random);
}

}  // namespace schuss::data
