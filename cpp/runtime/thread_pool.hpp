// The thread pool.
//
// Workers sleep when there is nothing to do, and are woken for work that takes long enough. Each
// thread begins with the tasks of its own range (task_ranges.hpp). The caller runs tasks too, and
// at the end waits only for workers that have begun: a worker that wakes too late, because another
// thread has its core, costs nothing.
#pragma once

#include <chrono>
#include <cstddef>

namespace schuss::runtime {

/// Work for the pool: run(context, task, slot) for each task, in any order and on any thread. No
/// two threads have the same slot at the same time. Slot 0 is the caller's.
struct Work {
    void (*run)(void* context, std::size_t task, std::size_t slot) noexcept;
    void* context;
    std::size_t tasks;
    bool wake_workers;       // whether the work takes much longer than a worker needs to wake
    bool backwards = false;  // whether threads begin with the last tasks of their ranges
};

/// The maximum number of threads, more than a machine has cores.
inline constexpr std::size_t max_threads = 1024;

/// Runs all tasks on at most this many threads, including the caller's. The caller runs them alone
/// if the pool is busy for another thread, or if wake_workers is false and the previous call ended
/// longer ago than the spin time. Returns the number of threads that took part.
std::size_t parallel_for(const Work& work, std::size_t threads) noexcept;

/// Wakes workers that sleep, for a call that will follow soon.
void wake_workers(std::size_t threads) noexcept;

/// Runs every task on its own thread, all at the same time, so that tasks may wait for each other.
/// Blocks until the pool is free, and delays fork(). Returns false, having done nothing, if there
/// cannot be that many threads or if this thread is already running a task.
bool run_concurrently(const Work& work) noexcept;

/// Sets how long workers wait awake for the next call before they sleep. They do so only while
/// calls follow each other within this time.
void set_spin_time(std::chrono::microseconds time);
inline constexpr std::chrono::microseconds default_spin_time{50};

/// Must be called once, before there are threads that fork. A child process has no pool until it
/// needs one.
void prepare_for_fork();

/// The current number of workers, for tests.
std::size_t workers();

/// The maximum number of threads of a step.
std::size_t threads();

/// Sets the maximum for steps from now on, and returns the previous one.
std::size_t set_threads(std::size_t threads);

}  // namespace schuss::runtime
