// The threads that share the tiles of a step.
//
// Workers sleep when there is nothing to do, and are woken for work that is worth it. Tiles are
// claimed one by one from a counter; the caller claims them too, and in the end waits only for
// workers that have begun: one that wakes too late, because other threads hold its core, costs
// nothing.
#pragma once

#include <chrono>
#include <cstddef>

namespace schuss::runtime {

/// What the crew does: run(context, tile, place) for each tile, in any order, each on some thread.
/// No two threads have the same place at a time; places count from 0, the caller's.
struct Work {
    void (*run)(void* context, std::size_t tile, std::size_t place) noexcept;
    void* context;
    std::size_t tiles;
    bool wake_workers;  // whether it takes much longer than a worker needs to wake
};

/// Does all of the work on at most so many threads, this one among them. Work that comes while the
/// crew is at work for another thread is done on its caller's thread alone, and so is work that is
/// not worth waking for, unless calls follow each other closely.
void parallel_for(const Work& work, std::size_t threads) noexcept;

/// Does the work with each tile on a thread of its own, all at the same time, so that they may wait
/// for each other; itself it waits until the crew is free, and a fork waits for it. False, and
/// nothing is done, if there cannot be so many threads, or if this thread is at work for the crew
/// already.
bool run_concurrently(const Work& work) noexcept;

/// Calls that follow each other within this time follow closely: workers wait awake for the next.
void set_spin_time(std::chrono::microseconds patience);
inline constexpr std::chrono::microseconds default_spin_time{50};

/// To be called once, before there are threads that fork: a child has no crew until it needs one.
void prepare_for_fork();

/// The workers that there are, for tests.
std::size_t workers();

/// Threads a step may use.
std::size_t threads();

/// Another number of threads for the steps from now on; returns the one before.
std::size_t set_threads(std::size_t threads);

/// More than anyone has cores.
inline constexpr std::size_t max_threads = 1024;

}  // namespace schuss::runtime
