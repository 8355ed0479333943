// The elements of a gradient, in the order in which those of its parameter are in memory. Each
// component of a complex number counts as an element, and those of one number stay together.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "engine/tiles.hpp"

namespace schuss::engine {

class MemoryOrder {
  public:
    MemoryOrder() = default;
    MemoryOrder(const std::vector<std::size_t>& shape, const Operand& parameter,
                const Operand& gradient);

    std::size_t elements() const { return elements_; }
    std::size_t components() const { return components_; }

    /// Whether the elements are aligned and contiguous in this order.
    bool contiguous() const { return contiguous_; }

    /// The elements along the innermost axis.
    std::size_t row() const { return axes_.back().size * components_; }

    /// The address of an element of a contiguous gradient. `gradient` is its element at index zero.
    const std::byte* at(const std::byte* gradient, std::size_t element) const {
        return gradient + offset_ + static_cast<std::ptrdiff_t>(element * item_size_ / components_);
    }

    /// Copies consecutive elements of this order, and the rest of the last number. The first must
    /// be the first component of its number.
    void gather(const std::byte* gradient, std::size_t begin, std::size_t count,
                std::byte* to) const noexcept;

  private:
    struct OrderAxis {
        std::size_t size;
        std::array<std::ptrdiff_t, 2> strides;  // of the parameter and the gradient

        std::ptrdiff_t stride() const { return strides[1]; }
    };

    std::size_t item_size_ = 0;  // of a number
    std::size_t components_ = 1;
    std::size_t elements_ = 0;
    std::ptrdiff_t offset_ = 0;  // of the first element
    bool contiguous_ = false;
    std::vector<OrderAxis> axes_;  // from the outermost to the innermost
};

}  // namespace schuss::engine
