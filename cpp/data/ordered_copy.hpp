// Copies between an array and its elements in the order of a parameter's memory.
#pragma once

#include <cstddef>

#include "engine/memory_order.hpp"

namespace schuss::data {

/// `MemoryOrder::gather` and `MemoryOrder::scatter` on the threads of the pool. item_size: of an
/// element.
void gather_in_order(const engine::MemoryOrder& order, std::size_t item_size,
                     const std::byte* array, std::size_t begin, std::size_t count,
                     std::byte* to) noexcept;
void scatter_in_order(const engine::MemoryOrder& order, std::size_t item_size,
                      const std::byte* from, std::size_t begin, std::size_t count,
                      std::byte* array) noexcept;

}  // namespace schuss::data
