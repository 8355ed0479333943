#include "runtime/thread_pool.hpp"

#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "runtime/fork.hpp"
#include "runtime/subnormals.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace schuss::runtime {
namespace {

using Clock = std::chrono::steady_clock;

/// While calls follow each other within this time, workers wait awake for the next one: it comes
/// before they could be woken. Otherwise they sleep at once, and leave their cores to others.
std::atomic<std::chrono::microseconds> close_by = default_spin_time;

/// Whether this thread is at a tile: it cannot have the crew a second time.
thread_local bool at_work = false;

void relax() {
#if defined(__x86_64__)
    _mm_pause();
#else
    __asm__ volatile("yield");
#endif
}

/// Workers take no signals, which are for the threads that the user knows of; but for those that
/// tell of a worker's own fault, so that it is reported like any other.
#if defined(_WIN32)
struct SignalsAreForOthers {
    SignalsAreForOthers() {}  // there are none
};
#else
class SignalsAreForOthers {
  public:
    SignalsAreForOthers() {
        sigset_t blocked;
        ::sigfillset(&blocked);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) {
            ::sigdelset(&blocked, fault);
        }
        ::pthread_sigmask(SIG_SETMASK, &blocked, &before_);
    }
    ~SignalsAreForOthers() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    SignalsAreForOthers(const SignalsAreForOthers&) = delete;
    SignalsAreForOthers& operator=(const SignalsAreForOthers&) = delete;

  private:
    sigset_t before_;
};
#endif

class ThreadPool {
  public:
    void parallel_for(const Work& work, std::size_t threads) noexcept {
        const bool close = is_close();
        std::unique_lock turn(turn_, std::defer_lock);
        if ((close || work.wake_workers) && turn.try_lock()) {
            threads = std::min(threads, work.tiles);
            hire(threads - 1);
            together(work, threads, close);
        } else {
            alone(work);
        }
        ended_.store(Clock::now(), std::memory_order_relaxed);
    }

    bool run_concurrently(const Work& work) noexcept {
        const std::lock_guard turn(turn_);
        hire(work.tiles - 1);
        if (workers() + 1 < work.tiles) return false;
        together(work, work.tiles, is_close());
        ended_.store(Clock::now(), std::memory_order_relaxed);
        return true;
    }

    static void alone(const Work& work) noexcept {
        for (std::size_t tile = 0; tile < work.tiles; ++tile) work.run(work.context, tile, 0);
    }

    std::size_t workers() const { return workers_.load(std::memory_order_relaxed); }

  private:
    // The door: how often it was opened, whether it is open, for how many places (the caller's is
    // 0), and how many workers are inside.
    static constexpr int generation_shift = 32;
    static constexpr std::uint64_t open = std::uint64_t{1} << 31;
    static constexpr int places_shift = 16;
    static constexpr std::uint64_t inside = (std::uint64_t{1} << places_shift) - 1;
    static_assert(max_threads < std::size_t{1} << (31 - places_shift));

    bool is_close() const {
        return Clock::now() - ended_.load(std::memory_order_relaxed) <
               close_by.load(std::memory_order_relaxed);
    }

    void together(const Work& work, std::size_t threads, bool stay_awake) noexcept {
        stay_awake_.store(stay_awake, std::memory_order_relaxed);
        work_ = work;
        next_.store(0, std::memory_order_relaxed);
        {
            const std::lock_guard lock(mutex_);
            const std::uint64_t before = door_.load(std::memory_order_relaxed);
            door_.store(((before >> generation_shift) + 1) << generation_shift | open |
                            threads << places_shift,
                        std::memory_order_seq_cst);
        }
        if (asleep_.load(std::memory_order_seq_cst) > 0) {
            if (work.wake_workers) place_workers(threads - 1);
            called_.notify_all();
        }
        claim(0);
        leave_when_done();
    }

    /// Has workers wake on other processors than the caller's, if there are as many. Where threads
    /// of others spin on those, as BLAS's do, the system would wake a worker here, to take turns
    /// with its caller.
    void place_workers([[maybe_unused]] std::size_t wanted) noexcept {
#if defined(__linux__)
        cpu_set_t allowed;
        const int here = ::sched_getcpu();
        if (here < 0 || ::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
        if (static_cast<std::size_t>(CPU_COUNT(&allowed)) > wanted) {
            CPU_CLR(static_cast<std::size_t>(here), &allowed);
        }
        if (placed_ == workers() && CPU_EQUAL(&allowed, &processors_)) return;
        for (const auto worker : handles_) {
            ::pthread_setaffinity_np(worker, sizeof allowed, &allowed);
        }
        processors_ = allowed;
        placed_ = workers();
#endif
    }

    void claim(std::size_t place) noexcept {
        at_work = true;
        for (;;) {
            const std::size_t tile = next_.fetch_add(1, std::memory_order_relaxed);
            if (tile >= work_.tiles) break;
            work_.run(work_.context, tile, place);
        }
        at_work = false;
    }

    /// Closes the door, and waits for the workers inside: each makes its last tile, if any.
    void leave_when_done() noexcept {
        std::uint64_t door = door_.fetch_and(~open, std::memory_order_acq_rel);
        for (int i = 0; (door & inside) != 0; ++i) {
            if (i < 1000) {
                relax();
            } else {
                std::this_thread::yield();  // whoever is inside may wait for this core
            }
            door = door_.load(std::memory_order_acquire);
        }
    }

    /// Whether the door is open to this place, for work that its worker has not entered for yet.
    static bool calls(std::uint64_t door, std::size_t place, std::uint64_t generation) {
        return (door & open) != 0 && door >> generation_shift != generation &&
               place < (door & (open - 1)) >> places_shift;
    }

    void serve(std::size_t place) noexcept {
        use_default_mode();  // not that of whoever hired
        std::uint64_t generation = 0;
        for (;;) {
            wait(place, generation);
            std::uint64_t door = door_.load(std::memory_order_acquire);
            while (calls(door, place, generation)) {
                if (!door_.compare_exchange_weak(door, door + 1, std::memory_order_acq_rel,
                                                 std::memory_order_acquire)) {
                    continue;
                }
                generation = door >> generation_shift;
                claim(place);
                door_.fetch_sub(1, std::memory_order_release);
                break;
            }
        }
    }

    /// Returns when there may be work: awake at first if calls follow each other closely.
    void wait(std::size_t place, std::uint64_t generation) {
        const auto called = [&] {
            return calls(door_.load(std::memory_order_seq_cst), place, generation);
        };
        if (stay_awake_.load(std::memory_order_relaxed)) {
            const auto until = Clock::now() + close_by.load(std::memory_order_relaxed);
            do {
                for (int i = 0; i < 50; ++i) {
                    if (called()) return;
                    relax();
                }
                std::this_thread::yield();
            } while (Clock::now() < until);
        }
        std::unique_lock lock(mutex_);
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        called_.wait(lock, called);
        asleep_.fetch_sub(1, std::memory_order_relaxed);
    }

    /// Where the system has no more threads, those who are there do the work; it is asked once.
    void hire(std::size_t wanted) noexcept {
        if (workers() >= wanted || no_more_) return;
        const SignalsAreForOthers mask;
        try {
            while (workers() < wanted) {
                handles_.reserve(workers() + 1);
                std::thread worker(&ThreadPool::serve, this, workers() + 1);
                handles_.push_back(worker.native_handle());
                worker.detach();
                workers_.fetch_add(1, std::memory_order_relaxed);
            }
        } catch (...) {
            no_more_ = true;
        }
    }

    alignas(64) std::atomic<std::size_t> next_ = 0;
    alignas(64) std::atomic<std::uint64_t> door_ = 0;
    alignas(64) std::atomic<bool> stay_awake_ = false;
    std::atomic<int> asleep_ = 0;
    std::atomic<std::size_t> workers_ = 0;
    std::atomic<Clock::time_point> ended_ = Clock::time_point();
    std::mutex turn_;
    // Whose turn it is owns these.
    Work work_ = {};
    std::vector<std::thread::native_handle_type> handles_;
#if defined(__linux__)
    cpu_set_t processors_ = {};  // of the workers
    std::size_t placed_ = 0;     // workers who have been told
#endif
    bool no_more_ = false;
    std::mutex mutex_;
    std::condition_variable called_;
};

/// The process's crew. Never taken down: its threads may sleep in it until the process ends.
std::atomic<ThreadPool*> crew = nullptr;
std::atomic<bool> prepared_for_fork = false;
std::atomic<std::size_t> most_threads = 1;

/// Null if there is no memory for it.
ThreadPool* the_crew() noexcept {
    ThreadPool* existing = crew.load(std::memory_order_acquire);
    if (existing != nullptr) return existing;
    auto* const made = new (std::nothrow) ThreadPool;
    if (made == nullptr || crew.compare_exchange_strong(existing, made)) return made;
    delete made;
    return existing;
}

}  // namespace

void prepare_for_fork() {
    if (prepared_for_fork.exchange(true)) return;
    // A child has none of the threads, so it begins anew.
    at_fork([] {}, [] { crew.store(nullptr); });
}

void parallel_for(const Work& work, std::size_t threads) noexcept {
    ThreadPool* const all =
        threads > 1 && work.tiles > 1 && prepared_for_fork ? the_crew() : nullptr;
    if (all == nullptr) return ThreadPool::alone(work);
    all->parallel_for(work, threads);
}

bool run_concurrently(const Work& work) noexcept {
    if (at_work || !prepared_for_fork || work.tiles - 1 >= max_threads) return false;
    const ForkGuard meanwhile;
    ThreadPool* const all = the_crew();
    return all != nullptr && all->run_concurrently(work);
}

void set_spin_time(std::chrono::microseconds patience) {
    close_by.store(patience, std::memory_order_relaxed);
}

std::size_t workers() {
    const ThreadPool* const existing = crew.load(std::memory_order_acquire);
    return existing == nullptr ? 0 : existing->workers();
}

std::size_t threads() {
    return most_threads.load(std::memory_order_relaxed);
}

std::size_t set_threads(std::size_t threads) {
    if (threads == 0 || threads > max_threads) {
        throw std::invalid_argument("the number of threads is from 1 to 1024");
    }
    return most_threads.exchange(threads, std::memory_order_relaxed);
}

}  // namespace schuss::runtime
