// What a fork of the process must not cut in two.
#pragma once

#include <cstdint>
#include <thread>

namespace schuss::runtime {

/// While one lives, on any thread, a fork waits. A child has none of the threads that were at work,
/// so what they had begun would stay half done there. Not to be nested on one thread.
class ForkGuard {
  public:
    ForkGuard() noexcept;
    ~ForkGuard();
    ForkGuard(const ForkGuard&) = delete;
    ForkGuard& operator=(const ForkGuard&) = delete;
};

/// What else there is to do at a fork, while nothing is at work: in the parent, and in the child.
using ForkHandler = void (*)();
void at_fork(ForkHandler in_parent, ForkHandler in_child);

/// Has a fork wait for what is under way before it calls the handlers of libraries that are loaded
/// by now: the last to register is the first to be called.
void reregister_atfork();

/// How many forks lie between the first process and this one.
std::uint64_t fork_generation() noexcept;

/// The thread that made this process by its fork, the only one that it has of its parent's.
std::thread::id forking_thread() noexcept;

}  // namespace schuss::runtime
