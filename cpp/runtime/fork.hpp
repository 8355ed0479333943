// Work that a fork of the process must wait for.
#pragma once

#include <cstdint>
#include <thread>

namespace schuss::runtime {

/// Delays forks while it exists, on any thread. A child process has none of the other threads, so
/// work that they had begun would stay half done in it. Must not be nested on one thread.
class ForkGuard {
  public:
    ForkGuard() noexcept;
    ~ForkGuard();
    ForkGuard(const ForkGuard&) = delete;
    ForkGuard& operator=(const ForkGuard&) = delete;
};

/// Registers handlers that run after a fork, while no guard exists: one in the parent, one in the
/// child. Call this where no thread can fork: as the only thread, or under a guard.
using ForkHandler = void (*)();
void at_fork(ForkHandler in_parent, ForkHandler in_child);

/// Registers our atfork handlers again, so that a fork waits for guards before it calls the
/// handlers of the libraries loaded so far: handlers run in reverse order of registration.
void reregister_atfork();

/// The number of forks between the first process and this one.
std::uint64_t fork_generation() noexcept;

/// The thread whose fork created this process. It is the only one of the parent's threads here.
std::thread::id forking_thread() noexcept;

}  // namespace schuss::runtime
