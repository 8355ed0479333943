// One parameter that is updated by rows: its arrays, and the step up to which each row has come.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/item.hpp"
#include "engine/row_gradient.hpp"
#include "engine/row_history.hpp"
#include "engine/row_order.hpp"

namespace schuss::engine {

/// A run over rows of a table: they make the steps that they missed, and, with a gradient, one
/// more.
struct RowRun {
    const RowOrder* order = nullptr;  // the rows; nullptr: all
    const RowGradient* gradient = nullptr;
    RowHistory::Step step = {};  // the one more
    std::uint64_t seed = 0;
    std::uint64_t first = 0;  // the index of the parameter's first element among all
};

class RowTable {
  public:
    /// A table whose rows are up to date. operands: see RowTables::lay_out. is_lazy: whether rows
    /// without a gradient make no step.
    RowTable(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands,
             const RowStates& states, bool is_lazy);

    /// Whether such arrays can be updated by rows.
    static bool fits(const std::vector<std::size_t>& shape, const std::vector<Operand>& operands);

    std::size_t rows() const { return rows_; }
    numbers::DType compute_dtype() const { return numbers::compute_dtype(item_.formats.parameter); }

    /// The size of a row of all arrays together.
    std::size_t row_bytes() const { return row_bytes_; }

    /// The scratch that a run needs. Call it after `reserve`.
    std::size_t scratch_bytes() const;

    /// Whether rows may have missed a step.
    bool is_pending() const { return history_.count() > 0; }

    /// Makes room for another step. It may throw; the functions below cannot.
    void reserve() { history_.reserve(); }

    /// Whether the history has room for a step without a bound on what rows may miss.
    bool fits(const RowHistory::Step& step) const { return history_.fits(step); }

    /// Runs over the rows from `begin` to before `end` of the order.
    void run(const RowRun& run, std::size_t begin, std::size_t end, std::byte* scratch) noexcept;

    /// Counts a step that the rows of the last run have made, and the others have missed.
    void record(const RowHistory::Step& step) noexcept;

    /// Forgets the steps that all rows have made.
    void forget() noexcept;

  private:
    struct Worker;

    void catch_up_all(const Worker& worker, std::size_t begin, std::size_t end) noexcept;
    void catch_up(const Worker& worker, std::size_t row, std::size_t count) noexcept;
    void replay(const Worker& worker, std::size_t row, std::size_t count,
                std::uint32_t made) noexcept;
    void repeat(const Worker& worker, std::size_t row, std::uint32_t made) noexcept;
    void pass(const Item& item, std::size_t row, std::byte* gradient, const Pass& pass) noexcept;
    bool is_still() const;
    void prefetch(std::size_t row, bool with_arrays) const noexcept;

    Item item_;
    std::optional<Item> resting_;     // if there is an average
    std::size_t rows_ = 0, row_ = 0;  // their number, and the elements of one; complex ones once
    std::size_t row_bytes_ = 0;
    bool is_ordinary_ = false;  // whether steps only write the parameter and states, unrounded
    // How many steps of the history each row has made. Empty if rows never miss one.
    std::vector<std::int32_t> made_;
    RowHistory history_;
};

}  // namespace schuss::engine
