// Examples, each at some place of a data set, brought together: the copy that makes a mini-batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/copy.hpp"

namespace schuss::data {

/// Where examples lie: example i begins i strides after the first.
struct Examples {
    const std::byte* first;
    std::ptrdiff_t stride;
    std::size_t item_size;
    std::vector<engine::CopyAxis> axes;  // of one example; `to` is for gather to set
};

/// Copies the examples with these indices, one after the other, each densely in C order.
void gather(Examples examples, const std::int64_t* indices, std::size_t count, std::byte* to);

}  // namespace schuss::data
