// How threads share numbered tasks.
//
// Each thread has a home: a range of the tasks, the same one whenever the numbers of tasks and of
// threads are the same. So from run to run a thread works on the same data, which the caches of its
// core still have. A thread that has finished its home takes half of what is left of another's,
// from the end that the owner reaches last.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace schuss::runtime {

class TaskRanges {
  public:
    /// Makes room for this many threads. If it throws, nothing has changed.
    void reserve(std::size_t threads) {
        if (threads <= capacity_) return;
        homes_ = std::make_unique<Home[]>(threads);
        capacity_ = threads;
    }

    /// Divides the tasks among the threads, for which there must be room. Threads run the tasks of
    /// their homes in ascending order, or backwards.
    void divide(std::size_t tasks, std::size_t threads, bool backwards) noexcept {
        tasks_ = tasks;
        threads_ = threads;
        backwards_ = backwards;
        unit_ = tasks / max_units + 1;
        const std::uint64_t units = (tasks + unit_ - 1) / unit_;
        const std::uint64_t each = units / threads, more = units % threads;
        for (std::uint64_t i = 0, begin = 0; i < threads; ++i) {
            const std::uint64_t end = begin + each + (i < more ? 1 : 0);
            homes_[i].units.store(Range{begin, end}.packed(), std::memory_order_relaxed);
            begin = end;
        }
    }

    /// Calls run(task) for tasks that no other thread has taken, until none is left. Returns
    /// whether there was one.
    template <typename Run>
    bool run(std::size_t thread, const Run& run) noexcept {
        for (bool any = false;; any = true) {
            Range taken = take(homes_[thread], backwards_, false);
            if (taken.empty()) taken = take_from_others(thread);
            if (taken.empty()) return any;
            const std::size_t last = taken.end * unit_ < tasks_ ? taken.end * unit_ : tasks_;
            for (std::size_t task = taken.begin * unit_; task < last; ++task) run(task);
        }
    }

  private:
    // The ends of a range are packed into one word, so units of several tasks are counted if there
    // are more tasks than half a word can hold.
    static constexpr std::uint64_t max_units = (std::uint64_t{1} << 32) - 1;

    struct Range {
        std::uint64_t begin, end;

        static Range unpacked(std::uint64_t word) { return {word >> 32, word & max_units}; }
        std::uint64_t packed() const { return begin << 32 | end; }
        bool empty() const { return begin == end; }
    };

    /// What is left of a thread's range. It has cache lines of its own: processors fetch pairs.
    struct alignas(128) Home {
        std::atomic<std::uint64_t> units = 0;
    };

    /// Takes a unit, or half of all units, from the end or the beginning of a range.
    static Range take(Home& home, bool from_end, bool half) noexcept {
        std::uint64_t word = home.units.load(std::memory_order_relaxed);
        for (;;) {
            Range left = Range::unpacked(word);
            if (left.empty()) return left;
            const std::uint64_t count = half ? (left.end - left.begin + 1) / 2 : 1;
            Range taken = left;
            if (from_end) {
                left.end = taken.begin = taken.end - count;
            } else {
                left.begin = taken.end = taken.begin + count;
            }
            if (home.units.compare_exchange_weak(word, left.packed(), std::memory_order_relaxed)) {
                return taken;
            }
        }
    }

    /// Takes units from another thread. Returns one of them; the others become the thread's home,
    /// where further threads may take them. A thread that looks in between finds neither: it may
    /// leave early, and this thread does the work.
    Range take_from_others(std::size_t thread) noexcept {
        for (std::size_t i = 1; i < threads_; ++i) {
            Range taken = take(homes_[(thread + i) % threads_], !backwards_, true);
            if (taken.empty()) continue;
            Range first = taken;
            if (backwards_) {
                first.begin = taken.end = first.end - 1;
            } else {
                first.end = taken.begin = first.begin + 1;
            }
            homes_[thread].units.store(taken.packed(), std::memory_order_relaxed);
            return first;
        }
        return {0, 0};
    }

    std::unique_ptr<Home[]> homes_;
    std::size_t capacity_ = 0;
    std::size_t tasks_ = 0, threads_ = 0, unit_ = 1;
    bool backwards_ = false;
};

}  // namespace schuss::runtime
