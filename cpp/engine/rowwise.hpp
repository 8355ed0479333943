// The update of a row by a row-wise rule, which keeps one number for each row of a parameter: the
// mean of the squares of the gradient, then that number, then the elements.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "engine/tile_pass.hpp"
#include "rules/registry.hpp"

namespace schuss::engine {

class RowwiseUpdate {
  public:
    /// pass: over a parameter with row states. It and what it refers to must outlive this.
    RowwiseUpdate(const Layout& layout, const Pass& pass);
    RowwiseUpdate(const RowwiseUpdate&) = delete;
    RowwiseUpdate& operator=(const RowwiseUpdate&) = delete;

    /// Reads the gradient of a row, and updates the row's state. at: where the row begins in each
    /// operand. begin: its first element among those of the parameter.
    void begin_row(std::byte* const* at, std::uint64_t begin);

    /// The pass that updates the elements of that row.
    const Pass& pass() const { return pass_; }

  private:
    double sum_of_squares(std::byte* const* at) const;
    void transform(std::byte* const* at, std::size_t begin, std::size_t count, void* to) const;

    const Layout& layout_;
    const RowStates states_;
    const numbers::DType dtype_;  // the compute dtype
    const rules::UpdateRow update_row_;
    // They write the gradient as the rule sees it, if that differs, and add the weight decay to it.
    std::optional<Update> seen_, decay_;
    alignas(double) std::byte coefficients_[sizeof(rules::Coefficients)];
    Pass pass_;
};

}  // namespace schuss::engine
