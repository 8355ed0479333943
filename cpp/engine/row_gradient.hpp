// A gradient of which only some rows are not zero: the sum of given rows, each of which has an
// index.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "engine/prefetch.hpp"
#include "engine/row_order.hpp"
#include "numbers/dtype.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

struct RowGradient {
    const std::byte* values = nullptr;  // contiguous: a row for each index
    numbers::DType dtype = numbers::DType::float32;
    numbers::DType computed = numbers::DType::float32;  // the dtype of sums
    std::size_t row = 0;              // the elements of a row, two for each complex number
    const RowOrder* order = nullptr;  // of the indices
    bool is_sum = false;              // whether no row is given twice, and -0 stays as it is

    /// The number of distinct rows.
    std::size_t count() const { return order->count(); }

    /// A row, by its index among the distinct rows.
    std::size_t index(std::size_t k) const { return order->row(k); }

    /// Writes elements of the k-th distinct row: zero plus the values of its places, one after the
    /// other. If the rows are sums, the values.
    void sum(std::size_t k, std::size_t begin, std::size_t elements, const sweep::Level& level,
             std::byte* to) const noexcept;

    /// Fetches values of that row: those of its first places, since few rows have more.
    [[gnu::always_inline]] void prefetch(std::size_t k) const noexcept {
        const std::size_t bytes = row * numbers::size_of(dtype);
        constexpr std::size_t most_places = 4;
        const RowOrder::Places given = order->places(k);
        for (std::size_t i = 0; i < std::min(given.count, most_places); ++i) {
            engine::prefetch(values + given.at[i] * bytes, bytes);
        }
    }
};

}  // namespace schuss::engine
