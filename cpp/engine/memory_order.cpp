#include "engine/memory_order.hpp"

#include <algorithm>

#include "engine/axes.hpp"
#include "engine/copy.hpp"

namespace schuss::engine {

MemoryOrder::MemoryOrder(const std::vector<std::size_t>& shape, const Operand& parameter,
                         const Operand& gradient)
    : item_size_(gradient.item_size()),
      components_(gradient.components),
      elements_(gradient.components) {
    const auto size = static_cast<std::ptrdiff_t>(item_size_);
    axes_.reserve(shape.size() + 1);
    for (std::size_t i = 0; i < shape.size(); ++i) {
        elements_ *= shape[i];
        if (shape[i] > 1) axes_.push_back({shape[i], {parameter.strides[i], gradient.strides[i]}});
    }
    std::ptrdiff_t offsets[2] = {};
    flip_negative(axes_, &OrderAxis::strides, offsets);
    offset_ = offsets[1];
    sort_by_stride(axes_, [](const OrderAxis& axis) { return axis.strides[0]; });
    merge_adjacent(axes_, [](const OrderAxis& axis) { return std::array{axis.stride()}; });
    if (axes_.empty()) axes_.push_back({1, {size, size}});
    const std::size_t alignment = numbers::size_of(gradient.dtype);
    const bool is_aligned = reinterpret_cast<std::size_t>(gradient.data) % alignment == 0;
    contiguous_ = is_aligned && axes_.size() == 1 && axes_[0].stride() == size;
}

void MemoryOrder::gather(const std::byte* gradient, std::size_t begin, std::size_t count,
                         std::byte* to) const noexcept {
    const auto item_size = static_cast<std::ptrdiff_t>(item_size_);
    const OrderAxis& row = axes_.back();
    begin /= components_;
    count = (count + components_ - 1) / components_;
    while (count > 0) {
        const std::size_t column = begin % row.size;
        const std::byte* from =
            gradient + offset_ + static_cast<std::ptrdiff_t>(column) * row.stride();
        std::size_t outer = begin / row.size;
        std::size_t rows = 1;  // consecutive whole rows that one copy covers
        CopyAxes axes;
        for (std::size_t i = axes_.size() - 1; i-- > 0;) {
            const std::size_t index = outer % axes_[i].size;
            from += static_cast<std::ptrdiff_t>(index) * axes_[i].stride();
            outer /= axes_[i].size;
            if (i + 2 != axes_.size() || column > 0 || count < row.size) continue;
            rows = std::min(count / row.size, axes_[i].size - index);
            axes.at[axes.count++] = {rows, axes_[i].stride(),
                                     static_cast<std::ptrdiff_t>(row.size) * item_size};
        }
        const std::size_t run = std::min(count, row.size - column);
        axes.at[axes.count++] = {run, row.stride(), item_size};
        copy_box(axes, item_size_, from, to);
        to += rows * run * item_size_;
        begin += rows * run;
        count -= rows * run;
    }
}

}  // namespace schuss::engine
