// Statistics over all gradients of a step, computed before it: their norm, and whether they are
// finite.
//
// Squares are summed in double; elements are scaled by a power of two if their squares would leave
// its range. The order of summation depends only on the index of an element among those of all
// arrays: in blocks, in lanes within a block, then in pairs of blocks, pairs of pairs and so on. So
// the result does not depend on how the elements are divided into arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/memory_order.hpp"
#include "engine/row_gradient.hpp"
#include "engine/scratch.hpp"
#include "numbers/dtype.hpp"
#include "numbers/wide.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

class GradientStats {
  public:
    struct Gradient {
        numbers::DType dtype;
        const MemoryOrder* order;
        const std::byte* data;  // the element at index zero

        // If only some rows are given, the others are zero: `elements` in all, and the dtype is
        // that of the sums. Neither order nor data is used then.
        const RowGradient* rows = nullptr;
        std::size_t elements = 0;
    };

    /// Sets what is to be read, and allocates what runs need.
    void lay_out(std::vector<Gradient> gradients);

    /// Sets where a gradient is in the next run.
    void set_data(std::size_t gradient, const std::byte* data) { gradients_[gradient].data = data; }

    /// Call this before each run. It may throw; the run cannot.
    void prepare(std::size_t threads);

    /// Reads all gradients, from the first or from the last.
    void run(const sweep::Level& level, bool wake_workers, bool backwards) noexcept;

    /// Computes the sum of the squares of each block. The elements are multiplied by 2^power first.
    void sum_blocks(const sweep::Level& level, int power, bool wake_workers,
                    bool backwards) noexcept;

    /// These sums. After `run`, they are lost.
    const std::vector<double>& block_sums() const { return sums_; }

    /// The norm of all gradients together. It is not finite if an element is not.
    numbers::Wide norm() const;

    /// The index of the first gradient that is not finite; the number of gradients if all are.
    std::size_t first_nonfinite() const { return first_nonfinite_; }

  private:
    /// The part of a block that belongs to one gradient. Of a gradient with some rows, to one row:
    /// `begin` is its place where these rows are one after the other.
    struct Segment {
        std::size_t gradient, begin, count;
        std::uint16_t place;  // in the block
        bool is_finite;
    };

    void add_segments(std::size_t gradient, std::size_t begin, std::size_t count, std::size_t at);
    double sum_in_pairs() noexcept;

    void sum(const sweep::Level& level, int power, bool wake_workers, bool backwards) noexcept;
    std::size_t run_whole_blocks(const sweep::Level& level, std::size_t first,
                                 std::size_t last) noexcept;
    void run_chunk(const sweep::Level& level, std::size_t chunk, std::byte* scratch) noexcept;

    std::vector<Gradient> gradients_;
    std::vector<Segment> segments_;
    std::vector<std::size_t> blocks_;            // the first segment of each block, and the end
    std::vector<double> sums_;                   // of each block
    std::vector<std::size_t> indices_, merged_;  // of these blocks among all; while pairs are added
    std::vector<Scratch> scratch_;
    std::size_t scratch_bytes_ = 0;
    std::size_t threads_ = 1;
    std::size_t blocks_per_chunk_ = 1;
    bool in_pairs_ = true;
    double sum_ = 0;
    int power_ = 0;  // elements are multiplied by 2^power_ before they are squared
    std::size_t first_nonfinite_ = 0;
};

}  // namespace schuss::engine
