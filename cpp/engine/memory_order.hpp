// The elements of an array, in the order in which those of a parameter of the same shape are in
// memory. Each component of a complex number counts as an element, and those of one number stay
// together.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "engine/operand.hpp"

namespace schuss::engine {

class MemoryOrder {
  public:
    MemoryOrder() = default;
    MemoryOrder(const std::vector<std::size_t>& shape, const Operand& parameter,
                const Operand& array);

    std::size_t elements() const { return elements_; }
    std::size_t components() const { return components_; }

    /// Whether the elements are aligned and contiguous in this order.
    bool contiguous() const { return contiguous_; }

    /// The elements along the innermost axis.
    std::size_t row() const { return axes_.back().size * components_; }

    /// The consecutive elements of this order that have the array's cache lines whole, as far as
    /// its strides allow.
    std::size_t whole_lines() const;

    /// The distance in bytes from the element at index zero to the first of this order.
    std::ptrdiff_t offset() const { return offset_; }

    /// The address of an element of a contiguous array. `array` is its element at index zero.
    const std::byte* at(const std::byte* array, std::size_t element) const {
        return array + offset_ + static_cast<std::ptrdiff_t>(element * item_size_ / components_);
    }

    /// Copies consecutive elements of this order, and the rest of the last number. The first must
    /// be the first component of its number.
    void gather(const std::byte* array, std::size_t begin, std::size_t count,
                std::byte* to) const noexcept;

    /// The reverse.
    void scatter(const std::byte* from, std::size_t begin, std::size_t count,
                 std::byte* array) const noexcept;

  private:
    struct OrderAxis {
        std::size_t size;
        std::array<std::ptrdiff_t, 2> strides;  // of the parameter and the array

        std::ptrdiff_t stride() const { return strides[1]; }
    };

    template <class Copy>
    void for_each_box(std::size_t begin, std::size_t count, const Copy& copy) const noexcept;

    std::size_t item_size_ = 0;  // of a number
    std::size_t components_ = 1;
    std::size_t elements_ = 0;
    std::ptrdiff_t offset_ = 0;  // of the first element
    bool contiguous_ = false;
    std::vector<OrderAxis> axes_;  // from the outermost to the innermost
};

}  // namespace schuss::engine
