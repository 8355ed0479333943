#include "engine/sharing.hpp"

#include <atomic>

namespace schuss::engine {
namespace {

/// Threads share a step that takes one thread this many nanoseconds for each of them if the workers
/// are awake, and `waking_factor` times as long in all if they must be woken.
constexpr double waking_factor = 250;
std::atomic<double> parallel_threshold = 1000;

}  // namespace

Sharing sharing_of(double time, std::size_t most) {
    const double threshold = parallel_threshold.load(std::memory_order_relaxed);
    std::size_t threads = most;
    while (threads > 1 && time < static_cast<double>(threads) * threshold) --threads;
    return {threads, time >= waking_factor * threshold};
}

double set_parallel_threshold(double nanoseconds) {
    return parallel_threshold.exchange(nanoseconds, std::memory_order_relaxed);
}

}  // namespace schuss::engine
