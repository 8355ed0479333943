#include "engine/streams.hpp"

namespace schuss::engine {
namespace {

#include "numbers/random.hpp"

}  // namespace

Streams::Streams(std::uint64_t seed, std::uint64_t step) {
    for (std::uint64_t k = 0; k <= rules::max_states; ++k) {
        keys[k] = splitmix64(splitmix64(splitmix64(seed) ^ step) ^ k);
    }
}

}  // namespace schuss::engine
