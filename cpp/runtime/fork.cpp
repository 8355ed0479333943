#include "runtime/fork.hpp"

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <atomic>
#include <new>
#include <thread>
#include <vector>

namespace schuss::runtime {
namespace {

// Counters instead of locks: a lock held by a thread that the child does not have stays locked.
std::atomic<std::uint64_t> guards = 0;
std::atomic<std::uint64_t> waiting_forks = 0;
std::atomic<std::uint64_t> generation = 0;
std::thread::id forked_by;  // written while there is no other thread

struct Handlers {
    ForkHandler in_parent, in_child;
};
/// Never destroyed: a fork may happen while the process ends.
std::vector<Handlers>& handlers() {
    static auto& all = *new std::vector<Handlers>;
    return all;
}

void before() {
    waiting_forks.fetch_add(1);
    while (guards.load() != 0) std::this_thread::yield();
}

void after_in_parent() {
    for (const Handlers& each : handlers()) each.in_parent();
    waiting_forks.fetch_sub(1);
}

void after_in_child() {
    // Another thread of the parent may have been creating a guard, or forking too.
    guards.store(0);
    // These handlers run once for each registration, in the same fork.
    if (waiting_forks.load() != 0) generation.fetch_add(1);
    forked_by = std::this_thread::get_id();
    for (const Handlers& each : handlers()) each.in_child();
    waiting_forks.store(0);
}

}  // namespace

ForkGuard::ForkGuard() noexcept {
    for (;;) {
        guards.fetch_add(1);
        if (waiting_forks.load() == 0) return;
        guards.fetch_sub(1);
        while (waiting_forks.load() != 0) std::this_thread::yield();
    }
}

ForkGuard::~ForkGuard() {
    guards.fetch_sub(1);
}

void at_fork(ForkHandler in_parent, ForkHandler in_child) {
    handlers().push_back({in_parent, in_child});
    reregister_atfork();
}

void reregister_atfork() {
#if !defined(_WIN32)  // Windows has no fork
    if (::pthread_atfork(&before, &after_in_parent, &after_in_child) != 0) throw std::bad_alloc();
#endif
}

std::thread::id forking_thread() noexcept {
    return forked_by;
}

std::uint64_t fork_generation() noexcept {
    return generation.load(std::memory_order_relaxed);
}

}  // namespace schuss::runtime
