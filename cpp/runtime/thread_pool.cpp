#include "runtime/thread_pool.hpp"

#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#endif

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>

#include "runtime/fork.hpp"
#include "runtime/subnormals.hpp"
#include "runtime/task_ranges.hpp"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace schuss::runtime {
namespace {

using Clock = std::chrono::steady_clock;

/// While calls follow each other within this time, workers spin: the next call comes before they
/// could be woken. Otherwise they sleep at once and leave their cores to other threads.
std::atomic<std::chrono::microseconds> spin_time = default_spin_time;

/// Whether this thread is running a task. It cannot use the pool a second time.
thread_local bool is_in_task = false;

void cpu_relax() {
#if defined(__x86_64__)
    _mm_pause();
#else
    __asm__ volatile("yield");
#endif
}

/// Blocks signals in the workers that this thread starts: signals are for the user's threads.
/// Signals that a worker's own fault raises stay enabled, so that it is reported like any other.
#if defined(_WIN32)
struct BlockedSignals {
    BlockedSignals() {}  // Windows has none
};
#else
class BlockedSignals {
  public:
    BlockedSignals() {
        sigset_t blocked;
        ::sigfillset(&blocked);
        for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP}) {
            ::sigdelset(&blocked, fault);
        }
        ::pthread_sigmask(SIG_SETMASK, &blocked, &before_);
    }
    ~BlockedSignals() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    BlockedSignals(const BlockedSignals&) = delete;
    BlockedSignals& operator=(const BlockedSignals&) = delete;

  private:
    sigset_t before_;
};
#endif

class ThreadPool {
  public:
    std::size_t parallel_for(const Work& work, std::size_t threads) noexcept {
        const bool soon = follows_soon();
        std::size_t took_part = 1;
        std::unique_lock lock(busy_, std::defer_lock);
        if ((soon || work.wake_workers) && try_lock(lock)) {
            spawn(std::min(threads, work.tasks) - 1);
            took_part = run_parallel(work, std::min({threads, work.tasks, workers() + 1}), soon);
        } else {
            run_serial(work);
        }
        ended_.store(Clock::now(), std::memory_order_relaxed);
        return took_part;
    }

    void wake(std::size_t threads) noexcept {
        if (asleep_.load(std::memory_order_relaxed) == 0) return;
        const std::unique_lock lock(busy_, std::try_to_lock);
        if (!lock) return;
        waking_.store(true, std::memory_order_relaxed);
        spin_.store(true, std::memory_order_relaxed);
        threads = std::min(threads, workers() + 1);
        const std::uint64_t before = early_word_.load(std::memory_order_relaxed);
        wake_workers(early_word_, (before >> epoch_shift) + 1, threads);
        waking_.store(false, std::memory_order_relaxed);
    }

    bool run_concurrently(const Work& work) noexcept {
        const std::lock_guard lock(busy_);
        spawn(work.tasks - 1);
        if (workers() + 1 < work.tasks) return false;
        run_parallel(work, work.tasks, follows_soon());
        ended_.store(Clock::now(), std::memory_order_relaxed);
        return true;
    }

    static void run_serial(const Work& work) noexcept {
        if (work.backwards) {
            for (std::size_t task = work.tasks; task-- > 0;) work.run(work.context, task, 0);
        } else {
            for (std::size_t task = 0; task < work.tasks; ++task) work.run(work.context, task, 0);
        }
    }

    std::size_t workers() const { return workers_.load(std::memory_order_relaxed); }

  private:
    // The epoch word: the number of the current work (32 bits), whether workers may still join it
    // (1), for how many slots it is (15), and how many workers have joined (16).
    static constexpr int epoch_shift = 32;
    static constexpr std::uint64_t open = std::uint64_t{1} << 31;
    static constexpr int slots_shift = 16;
    static constexpr std::uint64_t joined = (std::uint64_t{1} << slots_shift) - 1;
    static_assert(max_threads < std::size_t{1} << (31 - slots_shift));

    /// How many workers each thread wakes.
    static constexpr std::size_t children = 4;

    static std::size_t slots(std::uint64_t word) { return (word & (open - 1)) >> slots_shift; }

    /// A worker, in cache lines of its own.
    struct alignas(128) Worker {
        std::thread::native_handle_type handle = {};
        std::mutex mutex;
        std::condition_variable called;
        std::atomic<bool> asleep = false;
    };

    /// Takes the pool unless it works for another thread. Another thread that wakes workers has it
    /// for a moment only.
    bool try_lock(std::unique_lock<std::mutex>& lock) const {
        while (!lock.try_lock()) {
            if (!waking_.load(std::memory_order_relaxed)) return false;
            cpu_relax();
        }
        return true;
    }

    bool follows_soon() const {
        return Clock::now() - ended_.load(std::memory_order_relaxed) <
               spin_time.load(std::memory_order_relaxed);
    }

    /// Returns the number of threads that took part.
    std::size_t run_parallel(const Work& work, std::size_t threads, bool spin) noexcept {
        if (threads == 1) {  // there may be no room for ranges
            is_in_task = true;
            run_serial(work);
            is_in_task = false;
            return 1;
        }
        spin_.store(spin, std::memory_order_relaxed);
        work_ = work;
        ranges_.divide(work.tasks, threads, work.backwards);
        took_part_.store(0, std::memory_order_relaxed);
        const std::uint64_t before = epoch_word_.load(std::memory_order_relaxed);
        wake_workers(epoch_word_, (before >> epoch_shift) + 1, threads);
        run_tasks(0);
        wait_for_joined();
        return took_part_.load(std::memory_order_relaxed);
    }

    /// Publishes a new epoch in one of the two words, and wakes the workers that sleep.
    void wake_workers(std::atomic<std::uint64_t>& published, std::uint64_t epoch,
                      std::size_t threads) noexcept {
        const std::uint64_t word = epoch << epoch_shift | open | threads << slots_shift;
        published.store(word, std::memory_order_seq_cst);
        if (asleep_.load(std::memory_order_seq_cst) == 0) return;
        set_affinity(threads - 1);
        wake_children(0, word);
    }

    /// Wakes those of its children in the tree of threads that sleep: the caller need not wake
    /// each worker itself.
    void wake_children(std::size_t slot, std::uint64_t word) noexcept {
        const std::size_t first = slot * children + 1;
        for (std::size_t child = first; child < std::min(first + children, slots(word)); ++child) {
            Worker& worker = *all_[child - 1];
            // A worker that is awake looks at the epoch word before it sleeps.
            const bool sleeps = worker.asleep.load(std::memory_order_seq_cst) &&
                                worker.asleep.exchange(false, std::memory_order_seq_cst);
            if (!sleeps) continue;
            // Its lock is free once it waits.
            worker.mutex.lock();
            worker.mutex.unlock();
            worker.called.notify_one();
        }
    }

    /// Lets workers wake on other processors than the caller's, if there are enough. If the threads
    /// of another library spin on those, as BLAS's do, the system would otherwise wake a worker on
    /// the caller's processor, where the two would take turns.
    void set_affinity([[maybe_unused]] std::size_t wanted) noexcept {
#if defined(__linux__)
        cpu_set_t allowed;
        const int here = ::sched_getcpu();
        if (here < 0 || ::sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
        if (static_cast<std::size_t>(CPU_COUNT(&allowed)) > wanted) {
            CPU_CLR(static_cast<std::size_t>(here), &allowed);
        }
        if (bound_ == workers() && CPU_EQUAL(&allowed, &processors_)) return;
        for (std::size_t i = 0; i < workers(); ++i) {
            ::pthread_setaffinity_np(all_[i]->handle, sizeof allowed, &allowed);
        }
        processors_ = allowed;
        bound_ = workers();
#endif
    }

    void run_tasks(std::size_t slot) noexcept {
        is_in_task = true;
        const bool took_part =
            ranges_.run(slot, [&](std::size_t task) { work_.run(work_.context, task, slot); });
        is_in_task = false;
        if (took_part) took_part_.fetch_add(1, std::memory_order_relaxed);
    }

    /// Lets no more workers join, and waits for those that have: each ends its last task, if any.
    void wait_for_joined() noexcept {
        std::uint64_t word = epoch_word_.fetch_and(~open, std::memory_order_acq_rel);
        for (int i = 0; (word & joined) != 0; ++i) {
            if (i < 1000) {
                cpu_relax();
            } else {
                std::this_thread::yield();  // the worker may be waiting for this core
            }
            word = epoch_word_.load(std::memory_order_acquire);
        }
    }

    /// Whether the worker with this slot may join, and has not joined this work before. `epoch` is
    /// the work that it joined last.
    static bool may_join(std::uint64_t word, std::size_t slot, std::uint64_t epoch) {
        return (word & open) != 0 && word >> epoch_shift != epoch && slot < slots(word);
    }

    void work(std::size_t slot) noexcept {
        use_default_mode();  // instead of the mode of the thread that started the worker
        Worker& self = *all_[slot - 1];
        std::uint64_t epoch = 0;
        for (;;) {
            wait(self, slot, epoch);
            std::uint64_t word = epoch_word_.load(std::memory_order_acquire);
            while (may_join(word, slot, epoch)) {
                if (!epoch_word_.compare_exchange_weak(word, word + 1, std::memory_order_seq_cst,
                                                       std::memory_order_acquire)) {
                    continue;
                }
                epoch = word >> epoch_shift;
                if (asleep_.load(std::memory_order_seq_cst) > 0) wake_children(slot, word);
                run_tasks(slot);
                epoch_word_.fetch_sub(1, std::memory_order_release);
                break;
            }
        }
    }

    /// Returns when there may be work. Spins first if calls follow each other closely.
    void wait(Worker& self, std::size_t slot, std::uint64_t epoch) {
        const auto is_called = [&] {
            return may_join(epoch_word_.load(std::memory_order_seq_cst), slot, epoch);
        };
        while (!spin(is_called) && !sleep(self, slot, is_called)) {
        }
    }

    /// Waits awake, if calls follow each other closely. Returns whether the worker is called.
    template <typename IsCalled>
    bool spin(const IsCalled& is_called) const {
        if (!spin_.load(std::memory_order_relaxed)) return false;
        const auto until = Clock::now() + spin_time.load(std::memory_order_relaxed);
        do {
            for (int i = 0; i < 50; ++i) {
                if (is_called()) return true;
                cpu_relax();
            }
            std::this_thread::yield();
        } while (Clock::now() < until);
        return false;
    }

    /// Sleeps. Returns true if the worker is called, and false if a call will follow soon.
    template <typename IsCalled>
    bool sleep(Worker& self, std::size_t slot, const IsCalled& is_called) {
        std::unique_lock lock(self.mutex);
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        const std::uint64_t early = early_word_.load(std::memory_order_seq_cst);
        std::uint64_t now = early;
        for (;;) {
            self.asleep.store(true, std::memory_order_seq_cst);
            now = early_word_.load(std::memory_order_seq_cst);
            if (now != early || is_called()) break;
            self.called.wait(lock);
        }
        self.asleep.store(false, std::memory_order_relaxed);
        asleep_.fetch_sub(1, std::memory_order_relaxed);
        lock.unlock();
        if (is_called()) return true;
        wake_children(slot, now);
        return false;
    }

    /// Starts workers until this many exist. If the system refuses one, the pool works
    /// with those it has and does not ask again.
    void spawn(std::size_t wanted) noexcept {
        if (workers() >= wanted || spawn_failed_) return;
        const BlockedSignals mask;
        try {
            ranges_.reserve(wanted + 1);
            while (workers() < wanted) {
                const std::size_t slot = workers() + 1;
                all_[slot - 1] = std::make_unique<Worker>();
                std::thread thread(&ThreadPool::work, this, slot);
                all_[slot - 1]->handle = thread.native_handle();
                thread.detach();
                workers_.fetch_add(1, std::memory_order_relaxed);
            }
        } catch (...) {
            spawn_failed_ = true;
        }
    }

    alignas(128) std::atomic<std::uint64_t> epoch_word_ = 0;
    std::atomic<std::size_t> took_part_ = 0;  // threads, in the current work
    // The early word: as the epoch word, for calls of `wake`.
    std::atomic<std::uint64_t> early_word_ = 0;
    // What does not change while threads work.
    alignas(128) std::atomic<bool> spin_ = false;
    std::atomic<int> asleep_ = 0;
    std::atomic<std::size_t> workers_ = 0;
    std::atomic<bool> waking_ = false;  // whether a thread holds busy_ to wake workers
    std::mutex busy_;
    // The thread that holds busy_ owns these; workers that have joined read them.
    Work work_ = {};
    TaskRanges ranges_;
    std::array<std::unique_ptr<Worker>, max_threads> all_;
#if defined(__linux__)
    cpu_set_t processors_ = {};  // of the workers
    std::size_t bound_ = 0;      // workers whose affinity was set
#endif
    bool spawn_failed_ = false;
    std::atomic<Clock::time_point> ended_ = Clock::time_point();
};

/// The pool of the process. Never destroyed: its threads may sleep in it until the process ends.
std::atomic<ThreadPool*> pool = nullptr;
std::atomic<bool> is_prepared_for_fork = false;
std::atomic<std::size_t> thread_limit = 1;

/// The pool, created at first use; null if there is no memory for it.
ThreadPool* get_pool() noexcept {
    ThreadPool* existing = pool.load(std::memory_order_acquire);
    if (existing != nullptr) return existing;
    auto* const created = new (std::nothrow) ThreadPool;
    if (created == nullptr || pool.compare_exchange_strong(existing, created)) return created;
    delete created;
    return existing;
}

}  // namespace

void prepare_for_fork() {
    if (is_prepared_for_fork.exchange(true)) return;
    // A child has none of the threads, so it needs a new pool.
    at_fork([] {}, [] { pool.store(nullptr); });
}

std::size_t parallel_for(const Work& work, std::size_t threads) noexcept {
    const bool is_parallel = threads > 1 && work.tasks > 1 && is_prepared_for_fork;
    ThreadPool* const all = is_parallel ? get_pool() : nullptr;
    if (all != nullptr) return all->parallel_for(work, threads);
    ThreadPool::run_serial(work);
    return 1;
}

void wake_workers(std::size_t threads) noexcept {
    ThreadPool* const existing = pool.load(std::memory_order_acquire);
    if (existing != nullptr) existing->wake(threads);
}

bool run_concurrently(const Work& work) noexcept {
    if (is_in_task || !is_prepared_for_fork || work.tasks - 1 >= max_threads) return false;
    const ForkGuard guard;
    ThreadPool* const all = get_pool();
    return all != nullptr && all->run_concurrently(work);
}

void set_spin_time(std::chrono::microseconds time) {
    spin_time.store(time, std::memory_order_relaxed);
}

std::size_t workers() {
    const ThreadPool* const existing = pool.load(std::memory_order_acquire);
    return existing == nullptr ? 0 : existing->workers();
}

std::size_t threads() {
    return thread_limit.load(std::memory_order_relaxed);
}

std::size_t set_threads(std::size_t threads) {
    if (threads == 0 || threads > max_threads) {
        throw std::invalid_argument("the number of threads must be from 1 to " +
                                    std::to_string(max_threads));
    }
    return thread_limit.exchange(threads, std::memory_order_relaxed);
}

}  // namespace schuss::runtime
