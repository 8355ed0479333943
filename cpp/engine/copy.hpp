// Copies between an array, laid out as its user likes, and the dense scratch of a tile.
#pragma once

#include <cstddef>
#include <vector>

namespace schuss::engine {

inline constexpr std::size_t cache_line = 64;

/// As many as a NumPy array can have.
inline constexpr std::size_t max_axes = 64;

/// The size of a stride, whatever its direction.
inline std::size_t magnitude(std::ptrdiff_t stride) {
    const auto size = static_cast<std::size_t>(stride);
    return stride < 0 ? std::size_t{0} - size : size;
}

/// One axis of a copy, with the strides of both sides in bytes.
struct CopyAxis {
    std::size_t size;
    std::ptrdiff_t from, to;
};

/// The same axes without those of one element, and with those coalesced that run on in memory.
std::vector<CopyAxis> coalesced(const std::vector<CopyAxis>& axes);

/// Calls visit(from, to) for each element of the axes, in C order.
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

/// The axes of a copy. Of fixed size: a sweep that has begun must not run out of memory.
struct CopyAxes {
    CopyAxis at[max_axes];
    std::size_t count = 0;
};

/// Copies a box of elements of 2, 4 or 8 bytes, which need not be aligned. Puts the axes into the
/// order that suits it.
void copy_box(CopyAxes& axes, std::size_t item_size, const std::byte* from, std::byte* to) noexcept;

}  // namespace schuss::engine
