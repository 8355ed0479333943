// Tests the thread pool alone: several threads use it at the same time, for works of all sizes, and
// each task must run exactly once.
//
//     pool [rounds]

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "runtime/thread_pool.hpp"

namespace {

namespace runtime = schuss::runtime;

constexpr std::size_t most_threads = 9;

/// Counts how often each task runs. No two threads may have one slot at the same time, so a slot
/// needs no atomic: a sanitizer reports a second thread.
struct Counted {
    std::vector<std::atomic<int>> runs;
    std::vector<std::size_t> by_slot = std::vector<std::size_t>(most_threads);

    explicit Counted(std::size_t tasks) : runs(tasks) {}

    static void run(void* context, std::size_t task, std::size_t slot) noexcept {
        auto& self = *static_cast<Counted*>(context);
        self.runs[task].fetch_add(1, std::memory_order_relaxed);
        ++self.by_slot[slot];
    }

    bool each_once() const {
        std::size_t total = 0;
        for (const std::size_t part : by_slot) total += part;
        return total == runs.size() && std::all_of(runs.begin(), runs.end(), [](const auto& each) {
                   return each.load(std::memory_order_relaxed) == 1;
               });
    }
};

/// Shares works of changing sizes. Returns the number of those that were wrong.
int share(std::size_t rounds, std::size_t seed) {
    constexpr std::size_t sizes[] = {1, 2, 3, 8, 64, 1000};
    int wrong = 0;
    for (std::size_t i = seed; i < seed + rounds; ++i) {
        Counted counted(sizes[i % std::size(sizes)]);
        const std::size_t threads = 1 + i % most_threads;
        if (i % 3 == 0) runtime::wake_workers(threads);  // also in vain
        const std::size_t took_part = runtime::parallel_for(
            {&Counted::run, &counted, counted.runs.size(), i % 2 == 0, i % 5 < 2}, threads);
        wrong += took_part < 1 || took_part > threads || !counted.each_once();
    }
    return wrong;
}

/// Runs tasks that wait for each other, as the jobs of OpenBLAS do: it hangs if a worker is not
/// woken.
int meet(std::size_t rounds) {
    struct Meeting {
        std::size_t expected;
        std::atomic<std::size_t> arrived = 0;
    };
    const auto arrive = [](void* context, std::size_t, std::size_t) noexcept {
        auto& all = *static_cast<Meeting*>(context);
        for (++all.arrived; all.arrived < all.expected;) std::this_thread::yield();
    };
    int wrong = 0;
    for (std::size_t i = 0; i < rounds; ++i) {
        Meeting meeting{.expected = 1 + i % most_threads};
        const bool done = runtime::run_concurrently({arrive, &meeting, meeting.expected, true});
        wrong += !done || meeting.arrived != meeting.expected;
    }
    return wrong;
}

}  // namespace

int main(int argc, char** argv) {
    const std::size_t rounds = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 2000;
    runtime::prepare_for_fork();
    std::atomic<int> wrong = meet(1);  // before there is a worker
    std::atomic<std::size_t> left = 0;
    std::vector<std::thread> threads;
    const auto begin = [&](const auto& work) {
        ++left;
        threads.emplace_back([&, work] {
            wrong += work();
            --left;
        });
    };
    begin([=] { return share(rounds, 0); });
    begin([=] { return share(rounds, 7); });
    begin([=] { return meet(rounds / 10); });
    for (std::size_t turn = 0; left > 0; ++turn) {
        runtime::set_spin_time(turn % 2 == 0 ? std::chrono::microseconds(0)
                                             : runtime::default_spin_time);
        runtime::wake_workers(1 + turn % (most_threads + 2));
        std::this_thread::yield();
    }
    for (std::thread& thread : threads) thread.join();
    if (wrong == 0) std::puts("each task ran once");
    if (wrong != 0) std::printf("%d works were wrong\n", wrong.load());
    return wrong == 0 ? 0 : 1;
}
