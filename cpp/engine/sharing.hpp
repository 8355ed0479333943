// How many threads share the work of a step.
#pragma once

#include <cstddef>

namespace schuss::engine {

/// How many threads share work, and whether they must be woken.
struct Sharing {
    std::size_t threads;
    bool wakes;
};

/// time: the nanoseconds that one thread needs. most: the maximum number of threads.
Sharing sharing_of(double time, std::size_t most);

/// Sets how long a step must take one thread for each thread that shares it, and returns the
/// previous time. Results do not depend on it.
double set_parallel_threshold(double nanoseconds);

}  // namespace schuss::engine
