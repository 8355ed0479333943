// Copies between arrays of any strides and the dense scratch of a tile.
#pragma once

#include <cstddef>
#include <vector>

#include "engine/axes.hpp"

namespace schuss::engine {

inline constexpr std::size_t cache_line = 64;

/// A number of bytes, rounded up to a multiple of the cache line.
constexpr std::size_t whole_cache_lines(std::size_t bytes) {
    return (bytes + cache_line - 1) / cache_line * cache_line;
}

/// An axis of a copy, with the strides of the source and the destination in bytes.
struct CopyAxis {
    std::size_t size;
    std::ptrdiff_t from, to;
};

/// The axes without those of one element, and with neighbours merged that are contiguous on both
/// sides.
std::vector<CopyAxis> coalesced(const std::vector<CopyAxis>& axes);

/// Calls visit(from, to) for each element, in C order.
template <class Visit>
void for_each(const std::vector<CopyAxis>& axes, const std::byte* from, std::byte* to,
              const Visit& visit, std::size_t axis = 0) {
    if (axis == axes.size()) return visit(from, to);
    for (std::size_t i = 0; i < axes[axis].size; ++i) {
        for_each(axes, from, to, visit, axis + 1);
        from += axes[axis].from;
        to += axes[axis].to;
    }
}

/// Moves both addresses from the first element to the one with this index in C order.
inline void move_to(const std::vector<CopyAxis>& axes, std::size_t index, const std::byte*& from,
                    std::byte*& to) {
    for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis) {
        const auto i = static_cast<std::ptrdiff_t>(index % axis->size);
        from += i * axis->from;
        to += i * axis->to;
        index /= axis->size;
    }
}

/// The axes of a copy, in a fixed array: a step that has begun must not allocate memory.
struct CopyAxes {
    CopyAxis at[max_axes];
    std::size_t count = 0;
};

/// Copies a box of elements of 1, 2, 4, 8 or 16 bytes, which need not be aligned. Reorders the
/// axes.
void copy_box(CopyAxes& axes, std::size_t item_size, const std::byte* from, std::byte* to) noexcept;

}  // namespace schuss::engine
