// Many arrays as one range of tiles, which the threads of the pool share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "engine/formula.hpp"
#include "engine/gradient_stats.hpp"
#include "engine/item.hpp"
#include "engine/pace.hpp"
#include "engine/scratch.hpp"
#include "engine/tile_pass.hpp"
#include "numbers/dtype.hpp"
#include "runtime/thread_pool.hpp"

namespace schuss::engine {

/// What one pass over all items does.
struct Run {
    const Update* groups = nullptr;   // indexed by Item::group; nullptr: only clear the gradients
    const Update* average = nullptr;  // of the parameters; nullptr: they have no averages
    bool clear_gradients = false;
    bool measure_norms = false;
    std::uint64_t seed = 0, step = 0;  // determine the bits of stochastic rounding
};

class Plan {
  public:
    std::vector<Item> items;

    /// Sets the index of each item's first element among all elements, on which the bits of
    /// stochastic rounding depend. Without it, each item follows the one before.
    void set_first(std::vector<std::uint64_t> first) {
        first_ = std::move(first);
        has_own_first_ = true;
        invalidate();
    }

    /// That index, of an item. The plan must be prepared.
    std::uint64_t first(std::size_t item) const { return first_[item]; }

    /// Call this before the layout of an item changes.
    void invalidate() { built_ = false; }

    /// Wakes the threads that the last run had to wake: they wake while the next one is prepared.
    void wake_threads() const noexcept {
        if (wake_workers_ && threads_ > 1) runtime::wake_workers(threads_);
    }

    /// Call this before each run. It may throw; the run cannot.
    void prepare();

    /// The elements that a run passes over, two for each complex number.
    std::size_t elements() const { return elements_; }

    /// Whether a parameter rests in the next run.
    bool some_rest() const { return some_rest_; }

    /// Call this after `prepare`, before `statistics`. rows: the gradients of items that rest
    /// otherwise, nullptr for other items; empty if there are none.
    void prepare_statistics(const std::vector<const RowGradient*>& rows = {});

    /// Reads all gradients.
    const GradientStats& statistics() noexcept;

    /// Call this after `prepare`, before a run that measures norms.
    void prepare_norms();

    /// The norms that the last such run has measured; nullptr before any.
    const Norms* norms() const noexcept { return norms_.empty() ? nullptr : norms_[0].get(); }

    /// Passes over every tile of every item.
    void run(const Run& run) noexcept;

    /// Whether ranges of elements can be passed over: each item is contiguous along one axis.
    bool is_flat() const;

    /// Call this after `prepare`, before runs of ranges. sizes: of the items, in which complex
    /// numbers count once.
    void prepare_ranges(const std::vector<std::size_t>& sizes);

    /// Elements of all items one after another. Within an item, a range begins and ends at
    /// multiples of `range_unit`.
    struct Range {
        std::size_t begin, end;

        /// Where the states have these elements, in place of the item's own arrays: an address for
        /// each state. All elements belong to one item then. nullptr: in the item's own arrays.
        std::byte* const* states = nullptr;
    };
    static constexpr std::size_t range_unit = numbers::block_of(numbers::DType::square8);

    /// Passes over a range. Call `add_norms` after the last one of a run that measures norms.
    void run_range(const Run& run, const Range& range) noexcept;
    void add_norms() noexcept;

  private:
    struct Job;

    void build();
    void run_part(const Job& job, const Range& range, std::size_t begin, std::size_t end,
                  std::size_t slot) const noexcept;
    std::size_t place_in(std::size_t item, std::size_t element) const noexcept;

    /// The beginning of a share of the work: a tile of a large array, or many small arrays.
    struct Share {
        std::size_t item, tile;
    };

    std::vector<Share> shares_;        // the last one marks the end
    std::vector<std::size_t> begins_;  // of ranges: the elements before each item, and all
    std::vector<Scratch> scratch_;
    std::vector<std::unique_ptr<Norms>> norms_;  // of each thread; after a run, the first has all
    GradientStats statistics_;
    bool statistics_laid_out_ = false;
    std::size_t scratch_bytes_ = 0;
    std::size_t elements_ = 0;
    std::size_t bytes_ = 0;    // of all arrays
    bool prefetches_ = false;  // whether the next run fetches ahead
    Pace pace_;
    std::size_t threads_ = 1;  // of the next run
    bool wake_workers_ = false;
    bool backwards_ = false;            // whether the last run was
    std::vector<std::uint64_t> first_;  // the index of each item's first element among all
    bool has_own_first_ = false;
    bool stochastic_ = false;  // whether an array is rounded at random
    bool some_rest_ = false;
    bool built_ = false;
};

}  // namespace schuss::engine
