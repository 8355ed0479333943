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

// Counters and no locks: a child finds locks as threads left them that it does not have.
std::atomic<std::uint64_t> under_way = 0;
std::atomic<std::uint64_t> forks_wanted = 0;
std::atomic<std::uint64_t> generation = 0;
std::thread::id forker;  // written while there is no other thread

struct Handlers {
    ForkHandler in_parent, in_child;
};
/// Never taken down: a fork may come while the process ends.
std::vector<Handlers>& handlers() {
    static auto& all = *new std::vector<Handlers>;
    return all;
}

void before() {
    forks_wanted.fetch_add(1);
    while (under_way.load() != 0) std::this_thread::yield();
}

void after_in_parent() {
    for (const Handlers& each : handlers()) each.in_parent();
    forks_wanted.fetch_sub(1);
}

void after_in_child() {
    // Another thread may have been about to begin, or to fork as well.
    under_way.store(0);
    generation.fetch_add(1);
    forker = std::this_thread::get_id();
    for (const Handlers& each : handlers()) each.in_child();
    forks_wanted.store(0);
}

}  // namespace

ForkGuard::ForkGuard() noexcept {
    for (;;) {
        under_way.fetch_add(1);
        if (forks_wanted.load() == 0) return;
        under_way.fetch_sub(1);
        while (forks_wanted.load() != 0) std::this_thread::yield();
    }
}

ForkGuard::~ForkGuard() {
    under_way.fetch_sub(1);
}

void at_fork(ForkHandler in_parent, ForkHandler in_child) {
    handlers().push_back({in_parent, in_child});
    reregister_atfork();
}

void reregister_atfork() {
#if !defined(_WIN32)  // which has no fork
    if (::pthread_atfork(&before, &after_in_parent, &after_in_child) != 0) throw std::bad_alloc();
#endif
}

std::thread::id forking_thread() noexcept {
    return forker;
}

std::uint64_t fork_generation() noexcept {
    return generation.load(std::memory_order_relaxed);
}

}  // namespace schuss::runtime
