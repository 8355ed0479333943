// Work on data, shared by the threads of the pool.
#pragma once

#include <cstddef>

#include "runtime/thread_pool.hpp"

namespace schuss::data {

/// By how many threads work is shared.
struct Sharing {
    std::size_t threads = 1;
    bool wake_workers = false;
};

/// The sharing of work that reads and writes this many bytes.
Sharing sharing_of(std::size_t bytes);

/// Sets the number of bytes from which work is shared, and returns the previous one.
std::size_t set_sharing_threshold(std::size_t bytes);

/// Calls task(index, slot) for each index below count. Tasks run at the same time on several
/// threads, each with a slot of its own below `sharing.threads`.
template <class Task>
void run_tasks(std::size_t count, Sharing sharing, const Task& task) noexcept {
    const auto run = [](void* context, std::size_t index, std::size_t slot) noexcept {
        (*static_cast<const Task*>(context))(index, slot);
    };
    runtime::parallel_for({run, const_cast<Task*>(&task), count, sharing.wake_workers},
                          sharing.threads);
}

}  // namespace schuss::data
