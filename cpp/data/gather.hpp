// The copy that makes a mini-batch: it gathers examples of a data set by their indices.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/copy.hpp"

namespace schuss::data {

/// The memory of the examples: example i begins i strides after the first.
struct Examples {
    const std::byte* first;
    std::ptrdiff_t stride;
    std::size_t item_size;
    std::vector<engine::CopyAxis> axes;  // of one example; gather sets `to`
};

/// Copies the examples with these indices one after the other, each contiguous in C order.
void gather(Examples examples, const std::int64_t* indices, std::size_t count, std::byte* to);

}  // namespace schuss::data
