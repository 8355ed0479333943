// What a step may need to know of all gradients before it begins: their norm, and whether they are
// finite. Squares are added up in double (of what is scaled by a power of two, where they would
// leave its range), in an order that depends on nothing but the number of an element among those of
// all arrays: in blocks, lanes within a block, and pairs of blocks, pairs of pairs and so on. So it
// does not matter into how many arrays they are cut.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/layout.hpp"
#include "numbers/dtype.hpp"
#include "numbers/wide.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// The elements of a gradient in the order in which its parameter's lie in memory.
class MemoryOrder {
  public:
    MemoryOrder() = default;
    MemoryOrder(const std::vector<std::size_t>& shape, const std::ptrdiff_t* parameter_strides,
                const std::ptrdiff_t* strides, std::size_t item_size, bool aligned);

    std::size_t elements() const { return elements_; }

    /// Whether they lie one after another, as the loop takes them.
    bool contiguous() const { return contiguous_; }

    /// Elements of the innermost axis.
    std::size_t row() const { return axes_.back().size; }

    /// Where element begin of a contiguous gradient is. gradient: its element at index zero.
    const std::byte* at(const std::byte* gradient, std::size_t begin) const {
        return gradient + offset_ + static_cast<std::ptrdiff_t>(begin * item_size_);
    }

    /// Copies elements one after another.
    void gather(const std::byte* gradient, std::size_t begin, std::size_t count,
                std::byte* to) const noexcept;

  private:
    struct Axis {
        std::size_t size;
        std::ptrdiff_t stride;
    };

    std::size_t item_size_ = 0;
    std::size_t elements_ = 0;
    std::ptrdiff_t offset_ = 0;  // of the first element
    bool contiguous_ = false;
    std::vector<Axis> axes_;  // from the outermost to the innermost
};

class GradientStats {
  public:
    struct Gradient {
        numbers::DType number;
        const MemoryOrder* walk;
        const std::byte* data;  // of the element at index zero
    };

    /// Throws before anything is read.
    void prepare(std::vector<Gradient> gradients, std::size_t threads);

    /// Reads all gradients.
    void run(const sweep::Level& level, bool wake_workers) noexcept;

    /// Of all gradients together; not finite where one of them is not.
    numbers::Wide norm() const;

    /// The first gradient that is not finite; as many as there are if all are.
    std::size_t first_nonfinite() const { return first_nonfinite_; }

  private:
    /// What a block has of one gradient.
    struct Segment {
        std::size_t gradient, begin, count;
        bool finite;
    };

    void add_up(const sweep::Level& level, bool wake_workers, int power) noexcept;
    void run_share(const sweep::Level& level, std::size_t share, std::byte* scratch) noexcept;

    std::vector<Gradient> gradients_;
    std::vector<Segment> segments_;
    std::vector<std::size_t> blocks_;  // where the segments of each begin, and the end
    std::vector<double> sums_;         // of each block
    std::vector<Scratch> scratch_;
    std::size_t threads_ = 1;
    std::size_t blocks_a_share_ = 1;
    double sum_ = 0;
    int power_ = 0;  // of 2, by which elements were multiplied before they were squared
    std::size_t first_nonfinite_ = 0;
};

}  // namespace schuss::engine
