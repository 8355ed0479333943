// The gradients of a step that are rows.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "bindings/overlap.hpp"
#include "bindings/parameter.hpp"
#include "bindings/sorted_rows.hpp"
#include "engine/row_order.hpp"
#include "engine/row_tables.hpp"

namespace schuss::bindings {

/// What becomes of the rows that a gradient of rows does not have.
enum class RowMode : std::uint8_t {
    exact,  // they make the step later, with a gradient of zero
    lazy,   // they rest
};

class RowGradients {
  public:
    /// The references must stay valid.
    RowGradients(RowMode mode, const Parameters& parameters, engine::RowTables& tables);

    /// Sets whether steps measure the norms of the update.
    void set_measured(bool measured) noexcept { measured_ = measured; }

    /// Reads rows. TypeError or ValueError if they cannot be the gradient of a parameter. order: of
    /// the result. written: the arrays that a step writes.
    SortedRows read(std::size_t parameter, py::handle rows, const Name& name,
                    engine::RowOrder& order, const WriteSet& written);

    /// Takes rows as the gradient of a parameter in the step under way, and returns null. If it
    /// cannot be stepped by rows, returns an array of the same values. written: the arrays that the
    /// step writes.
    py::object take(std::size_t parameter, py::handle rows, const Name& name,
                    const WriteSet& written);

    /// The order of the rows that the last step of a parameter had, or the last reading. Not for
    /// use while a step is under way.
    engine::RowOrder& order(std::size_t parameter);

    /// Whether rows without a gradient rest.
    bool is_lazy() const { return mode_ == RowMode::lazy; }

    /// Whether the item of a parameter whose gradient is no array has no arrays either: rows are
    /// stepped apart from it.
    bool is_apart(std::size_t parameter) const {
        return tables_.are_pending(parameter) || has(parameter);
    }

    /// Call this after the last check that may run user code. ValueError if an array changed. Runs
    /// no Python code unless it raises.
    void bind(const std::string& call);

    /// The elements of the rows of the step under way.
    std::size_t elements() const;

    /// Appends the arrays of values that a step sets to zero. ValueError if one is read-only.
    void append_cleared(std::vector<NamedArray>& out, const std::string& call) const;

    /// Sets the values to zero.
    void clear_values() const noexcept;

    /// Drops the gradients of the step under way, which may run user code.
    void drop() noexcept;

    /// Drops the tables, since the arrays of the parameters change. No row may be pending.
    void forget_layouts() noexcept;

  private:
    /// The rows of a parameter, which is stepped by them or by an array of the same values.
    struct Taken {
        std::size_t parameter;
        bool by_rows;
        SortedRows rows;
    };

    bool has(std::size_t parameter) const;
    bool can_step(std::size_t parameter);
    void check_can_rest(std::size_t parameter, const Name& name);

    RowMode mode_;
    bool measured_ = false;
    const Parameters& parameters_;
    engine::RowTables& tables_;
    std::vector<Taken> taken_;                               // in the order of the parameters
    std::vector<std::unique_ptr<engine::RowOrder>> orders_;  // of the parameters; some are null
    std::vector<bool> unfit_;  // whether the arrays of a parameter cannot be stepped by rows
};

}  // namespace schuss::bindings
