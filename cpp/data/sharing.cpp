#include "data/sharing.hpp"

#include <atomic>

namespace schuss::data {
namespace {

/// Threads share work from `sharing_threshold` bytes on if the workers are awake, and from
/// `waking_factor` times that number on if they must be woken, as for steps (engine/sharing.cpp).
constexpr std::size_t waking_factor = 8;
std::atomic<std::size_t> sharing_threshold = std::size_t{1} << 20;

}  // namespace

Sharing sharing_of(std::size_t bytes) {
    const std::size_t enough = sharing_threshold.load(std::memory_order_relaxed);
    if (bytes < enough) return {};
    return {runtime::threads(), bytes / waking_factor >= enough};
}

std::size_t set_sharing_threshold(std::size_t bytes) {
    return sharing_threshold.exchange(bytes, std::memory_order_relaxed);
}

}  // namespace schuss::data
