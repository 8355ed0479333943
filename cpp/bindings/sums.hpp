// Gradients that are accumulated for a later step.
//
// The sum of a parameter is in an array of the optimizer's own or in the first gradient itself, an
// array of the user's, which is kept until the step.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/gradients.hpp"
#include "bindings/parameter.hpp"
#include "bindings/row_sums.hpp"
#include "bindings/tree.hpp"
#include "engine/step.hpp"

namespace schuss::bindings {

class Sums {
  public:
    /// call: what messages call the optimizer. parameters: those of the gradients. of_steps: the
    /// gradients of steps. The references must stay valid.
    Sums(std::string call, const Tree& tree, const Parameters& parameters,
         const Gradients& of_steps)
        : call_(std::move(call)),
          tree_(tree),
          parameters_(parameters),
          of_steps_(of_steps),
          of_rows_(parameters) {}

    /// Sets what checks gradients that are rows; without it, they are refused. The reference must
    /// stay valid.
    void set_rows(RowGradients& rows) noexcept { rows_ = &rows; }

    /// Whether the optimizer has arrays of its own for the sums.
    bool have_own() const { return own_ != nullptr; }

    /// Sets these arrays, unless there are some already.
    void set_own(const std::vector<py::object>& arrays);

    /// Uses the sums of another optimizer until the next step. arrays: a sum for each parameter,
    /// the other optimizer's first.
    void take(const std::vector<py::object>& arrays, const Sums& others);

    /// Adds gradients, multiplied by a scale. overwrite: whether the first gradient of a parameter
    /// becomes its sum; otherwise it is copied to the optimizer's own array. new_arrays: returns
    /// such arrays, one for each parameter; called when they are first needed.
    void add(py::handle grads, double scale, bool overwrite, bool clear_grads,
             py::handle new_arrays);

    /// The number of calls that added gradients.
    std::int64_t count() const { return used() == nullptr ? 0 : used()->accumulator.count(); }
    void set_count(std::int64_t count) noexcept;

    /// Whether gradients of parameter i were added.
    bool has(std::size_t i) const { return has_array(i) || has_rows(i); }
    void set_has(std::size_t i, bool has) noexcept { used()->accumulator.set_has(i, has); }

    /// A new array of the memory of a sum, or of the values of one that is rows. Parameter i has
    /// one.
    py::array array(std::size_t i) const {
        return has_rows(i) ? of_rows_.dense(i) : used()->arrays[i].array().plain();
    }

    /// ValueError if the user changed an array that is a sum. May run user code.
    void check_unchanged(const std::string& call) const;

    /// Reads the sums as the gradients of a step. ValueError if the user changed an array that is a
    /// sum. May run user code.
    void read_into(Gradients& gradients, const std::string& call) const;

    /// Forgets the sums: the next gradients replace them. It keeps the arrays.
    void forget() noexcept { set_count(0); }

    /// Drops the arrays of the user's, and the rows, which may run user code.
    void drop_given() noexcept {
        of_rows_.drop();
        const std::unique_ptr<Set> dropped = std::move(given_);
    }

    /// What a change of the optimizer prepares, since `configure` cannot fail. parameters: with
    /// their new arrays; nullptr if these stay. frozen: the parameters that rest even if they have
    /// gradients.
    struct Change {
        std::vector<WriteSet> written;
        std::vector<std::vector<std::size_t>> frozen;
    };
    Change prepare(const Parameters* parameters, const std::vector<std::size_t>& frozen) const;
    void configure(Change& change) noexcept;

    /// Checks every gradient of the next call in full.
    void invalidate() noexcept;

    /// Drops the sums that are rows.
    void drop_rows() noexcept { of_rows_.drop(); }

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const;
    auto release() noexcept {
        of_rows_.drop();
        return std::make_pair(std::move(own_), std::move(given_));
    }

  private:
    /// An array for each parameter. One that has no sum yet may stand for its array itself.
    struct Set {
        Parameters arrays;
        engine::Accumulator accumulator;
        Gradients gradients;

        Set(Parameters sums, const Tree& tree, const std::string& grads)
            : arrays(std::move(sums)), gradients(tree, arrays, accumulator.plan, grads) {}
    };

    Set* used() const {
        const bool uses_given = given_ != nullptr && given_->accumulator.count() > 0;
        return uses_given ? given_.get() : own_.get();
    }
    bool has_array(std::size_t i) const { return count() > 0 && used()->accumulator.has(i); }
    bool has_rows(std::size_t i) const { return count() > 0 && of_rows_.has(i); }
    std::array<Set*, 2> sets() const { return {own_.get(), given_.get()}; }  // some may be null
    std::unique_ptr<Set> set_of(Parameters arrays, const std::string& call,
                                const std::vector<std::size_t>& given) const;
    /// The gradients of a call that are rows.
    struct RowLeaves {
        RowSums::Addition addition;
        std::vector<std::size_t> added = {};      // the parameters to whose rows they are added
        std::vector<std::size_t> converted = {};  // those whose sums become arrays
        std::vector<std::pair<Name, py::object>> cleared = {};  // instances of `Rows`, set to zero
    };
    void take_rows(std::vector<py::object>& leaves, bool needs_zeros, bool clear_grads,
                   const std::string& call, RowLeaves& rows);
    std::unique_ptr<Set> set_for(const std::vector<py::object>& leaves, bool overwrite,
                                 const std::string& call, py::handle new_arrays,
                                 const std::vector<std::size_t>& converted,
                                 std::vector<std::size_t>& given);
    Parameter first_gradient(std::size_t i, py::handle leaf, const std::string& call) const;
    WriteSet written_by(const Parameters& arrays, const Parameters& parameters,
                        const std::string& call, const std::vector<std::size_t>& given) const;

    std::string call_;
    const Tree& tree_;
    const Parameters& parameters_;
    const Gradients& of_steps_;
    RowGradients* rows_ = nullptr;
    std::unique_ptr<Set> own_, given_;  // given_ has arrays of the user's
    RowSums of_rows_;                   // unless the count is 0
};

}  // namespace schuss::bindings
