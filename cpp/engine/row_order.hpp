// The rows that the indices of a sparse gradient name: each distinct row once, in ascending order,
// with the places where it is named.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace schuss::engine {

class RowOrder {
  public:
    /// The largest number of indices, and of rows that they may choose from.
    static constexpr std::size_t most = 0xffff'ffff;

    /// Sorts indices that are from 0 to below `rows`. May throw. The memory is kept for the next
    /// call. Indices that equal those of the last call are not sorted again: the rows of a gradient
    /// are often those that the forward pass has read.
    void sort(const std::vector<std::int64_t>& indices, std::size_t rows);

    /// The number of distinct rows.
    std::size_t count() const { return rows_.size(); }

    /// A row, by its index among the distinct rows.
    std::size_t row(std::size_t k) const { return rows_[k]; }

    /// The places of that row among the indices, in ascending order.
    struct Places {
        const std::uint32_t* at;
        std::size_t count;
    };
    Places places(std::size_t k) const {
        return {places_.data() + begins_[k], begins_[k + 1] - begins_[k]};
    }

  private:
    void sort_keys(unsigned bits);
    void find_rows();

    std::vector<std::int64_t> sorted_;         // the indices of the last call
    std::vector<std::uint64_t> keys_, other_;  // a row in the upper half, a place in the lower
    std::vector<std::uint32_t> rows_, places_;
    std::vector<std::uint32_t> begins_;  // the first place of each row, and the end
};

}  // namespace schuss::engine
