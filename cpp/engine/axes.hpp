// The axes of strided arrays of one shape, brought into an order that needs few and long loops.
//
// An axis is any struct with a size. A projection, such as a pointer to a member, selects the
// stride or the strides of an axis.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <vector>

namespace schuss::engine {

/// The maximum number of axes of a NumPy array.
inline constexpr std::size_t max_axes = 64;

/// The absolute value of a stride.
inline std::size_t magnitude(std::ptrdiff_t stride) {
    const auto size = static_cast<std::size_t>(stride);
    return stride < 0 ? std::size_t{0} - size : size;
}

/// Sorts axes by the magnitude of a stride, from the largest to the smallest. Axes with equal
/// strides keep their order.
template <class Axis, class Stride>
void sort_by_stride(std::vector<Axis>& axes, Stride stride) {
    std::stable_sort(axes.begin(), axes.end(), [&stride](const Axis& a, const Axis& b) {
        return magnitude(std::invoke(stride, a)) > magnitude(std::invoke(stride, b));
    });
}

/// Flips the axes along which the first array has a negative stride. Adds to offsets, for each
/// array, the distance in bytes that its first element moves.
template <class Axis, class Strides>
void flip_negative(std::vector<Axis>& axes, Strides strides, std::ptrdiff_t* offsets) {
    for (Axis& axis : axes) {
        auto& all = std::invoke(strides, axis);
        if (all[0] >= 0) continue;
        const auto last = static_cast<std::ptrdiff_t>(axis.size) - 1;
        for (std::size_t k = 0; k < all.size(); ++k) {
            offsets[k] += last * all[k];
            all[k] = -all[k];
        }
    }
}

/// Drops axes of one element, and merges neighbours that are contiguous in every array. Axes are
/// ordered from the outermost to the innermost.
template <class Axis, class Strides>
void merge_adjacent(std::vector<Axis>& axes, Strides strides) {
    const auto is_contiguous = [&strides](const Axis& outer, const Axis& inner) {
        const auto& outer_strides = std::invoke(strides, outer);
        const auto& inner_strides = std::invoke(strides, inner);
        const auto size = static_cast<std::ptrdiff_t>(inner.size);
        return std::equal(outer_strides.begin(), outer_strides.end(), inner_strides.begin(),
                          [size](std::ptrdiff_t a, std::ptrdiff_t b) { return a == b * size; });
    };
    std::size_t kept = 0;
    for (Axis axis : axes) {
        if (axis.size == 1) continue;
        if (kept > 0 && is_contiguous(axes[kept - 1], axis)) axis.size *= axes[--kept].size;
        axes[kept++] = axis;
    }
    axes.erase(axes.begin() + static_cast<std::ptrdiff_t>(kept), axes.end());
}

}  // namespace schuss::engine
