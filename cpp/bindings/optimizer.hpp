// The optimizer of the core: parameters in the user's structure, their states, and the steps made.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/busy_guard.hpp"
#include "bindings/gradients.hpp"
#include "bindings/parameter.hpp"
#include "bindings/pieces.hpp"
#include "bindings/row_gradients.hpp"
#include "bindings/sums.hpp"
#include "bindings/tree.hpp"
#include "engine/step.hpp"

namespace schuss::bindings {

class Optimizer {
  public:
    /// step, params, grads: what messages call the method and its arguments. round_at_random:
    /// whether parameters in bfloat16 without a master are rounded at random. first: where each
    /// parameter begins among all elements, of which these may be a part; without it, they follow
    /// each other. rows: "exact", "lazy", or "none" if no gradient may be rows.
    Optimizer(const std::string& call, py::handle parameters, const std::string& step,
              const std::string& params, std::string grads, bool round_at_random,
              const std::optional<std::vector<std::uint64_t>>& first, const std::string& rows);

    /// A copy of the tree of the parameters.
    py::object tree();

    /// The parameters and the copies as users hold them: their own arrays, or those that other
    /// objects exported.
    py::list users_arrays() const;
    py::list users_copies() const;

    /// New arrays of the parameters' memory, with the shapes and dtypes that they had when the
    /// optimizer was made. ValueError if a parameter has other memory now.
    py::list arrays() const;

    /// The same for the copies.
    py::list copies() const;

    /// New arrays of the parameters' values in their compute dtypes: with a master, all their bits.
    py::list values() const;

    /// Each step then compares these groups, whose params are the parameters, instead of the
    /// structure.
    void hold_groups(py::object groups);

    /// Returns the leaves of the structure in which the user keeps the copies. Each step then
    /// compares that structure too.
    py::list hold_copies(py::handle copies, const std::string& call);

    /// Sets what the next steps do. members: the group of each parameter. arrays: replace those
    /// that belong to the parameters; nullptr keeps them. New averages count as empty. frozen: the
    /// groups whose parameters rest. Changes all or nothing, even if memory runs out.
    void configure(const std::vector<engine::Formula>& formulas,
                   const std::vector<std::size_t>& members, const engine::StepOptions& options,
                   const AuxArrays* arrays, const std::vector<std::size_t>& frozen);

    /// A context manager within which no other call uses the optimizer. changes: whether the caller
    /// makes changes other than a step.
    static PyBusyGuard busy(py::object optimizer, std::string call, bool changes);

    /// Refuses all further calls: another optimizer has taken over the arrays.
    void retire() noexcept { busy_.retired.store(true, std::memory_order_relaxed); }

    std::int64_t steps() const { return step_.steps(); }
    void set_steps(std::int64_t steps) { step_.set_steps(in_range(steps, "steps")); }
    /// For each group, the steps in which all its parameters rested.
    std::vector<std::int64_t> rested() const;
    void set_rested(const std::vector<std::int64_t>& steps);

    std::int64_t skipped() const { return step_.skipped(); }
    void set_skipped(std::int64_t skipped) { step_.set_skipped(in_range(skipped, "skipped")); }

    /// The norm of the last step's gradients, whether they were clipped, whether it was skipped,
    /// and the norms of the update and of the parameters before it.
    py::object last() const;

    /// The norms of the update and of the parameters of the last step as integers, to be added to
    /// those of optimizers with other parameters; and sets both norms of `last` from such sums.
    /// ValueError if that step measured none.
    py::array_t<std::uint64_t> norm_parts() const;
    void set_norms(const py::array_t<std::uint64_t, py::array::c_style>& parts);
    void keep_last_of(const Optimizer& other) { step_.set_last(other.step_.last()); }

    /// The learning rate of each group in the last step; None before any, and after `forget_lrs`.
    py::object last_lrs() const;
    void forget_lrs() { step_.forget_lrs(); }
    std::uint64_t lr_version() const { return step_.lr_version(); }

    /// ValueError unless a step can be made with these learning rates.
    void check_lrs(py::handle lrs) const;

    /// ValueError unless the next step has gradients: either these or accumulated ones.
    void check_source(py::handle grads) const;

    /// Checks gradients as a step does, or (None) the accumulated ones, and changes nothing.
    /// Returns new arrays of their memory; None for parameters that rest. call: what messages call
    /// the caller.
    py::list read(py::handle grads, const std::string& call);
    /// ValueError if parameters or copies were replaced. call: what messages call the caller.
    void check_params(const std::string& call) const;

    /// What a step takes besides its gradients and learning rates.
    struct StepCall {
        double scale = 1;
        // The number of the step for which the caller computed the learning rates, or 0 for any
        // step; RuntimeError if another thread has made that step. And their version then.
        std::int64_t expected_step = 0;
        bool skip_nonfinite = false;
        std::optional<std::uint64_t> lr_version = {};
        // Replace the statistics of the gradients, if the parameters are a part of others.
        const engine::Statistics* statistics = nullptr;
        const Pieces* pieces = nullptr;  // nullptr: the step is made at once
    };

    /// Makes a step. grads: None for the accumulated gradients, which are used up. lrs: one
    /// learning rate, or a tuple with one for each group.
    void step(py::handle grads, py::handle lrs, const StepCall& call);

    /// The parameters of which rows may have missed a step.
    std::vector<std::size_t> pending() const;

    /// Brings all rows up to date. The caller must have the optimizer for itself.
    void flush();

    /// Brings rows up to date, and returns new arrays of them, in the structure of the parameters.
    /// indices: integer arrays of any shape; None for parameters that are left out. call: what
    /// messages call the caller.
    py::object rows(py::handle indices, const std::string& call);

    /// The pieces of a step; see there.
    Pieces pieces(py::handle ends, py::handle begin) const {
        return {ends, begin, parameters_, step_call_};
    }

    /// The gradients that are accumulated for the next step.
    bool has_sums() const { return sums_.have_own(); }
    void hold_sums(const std::vector<py::object>& arrays) { sums_.set_own(arrays); }
    void take_sums(const std::vector<py::object>& arrays, const Optimizer& other);

    /// Adds gradients; see `Sums::add`.
    void accumulate(py::handle grads, double scale, bool overwrite_grads, py::handle new_sums);
    std::int64_t accumulated() const { return sums_.count(); }
    void set_accumulated(std::int64_t count);
    void clear_accumulated();

    /// The parameters of which no gradient was accumulated, if some of others were.
    std::vector<std::size_t> without_sum() const;
    void set_without_sum(const std::vector<std::size_t>& parameters);

    /// New arrays of the sums' memory; None for parameters without a sum.
    py::list sums() const;

    /// The averages in the structure of the parameters: views of the arrays, or new arrays with the
    /// bias corrected. None if there are none.
    py::object average() const;
    engine::ParameterAverage::Weights average_weights() const { return step_.average().weights(); }
    void set_average_weights(const engine::ParameterAverage::Weights& weights) {
        step_.average().set_weights(weights);
    }

    /// ValueError unless the copies can be written.
    void check_copies(const std::string& call) const;

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const;
    void release();

  private:
    void require_norms() const;
    std::int64_t in_range(std::int64_t count, const std::string& name) const;
    void check_count(std::int64_t count, const std::string& call) const;
    void require_source(py::handle grads, const std::string& call) const;
    void read_gradients(py::handle grads, const std::string& call);
    void make_step(const StepCall& call, bool uses_sums);
    engine::Outcome run_pieces(const StepCall& call, bool uses_sums);
    py::object corrected_average() const;
    WriteSet write_set(const Parameters& parameters) const;

    std::string call_, step_call_, params_;
    mutable Busy busy_;
    Tree tree_;
    py::object tree_object_;            // a copy of the tree, made at first use
    std::optional<Tree::Held> copies_;  // as the user keeps them
    Parameters parameters_;
    engine::Step step_;
    Gradients gradients_;
    std::optional<RowGradients> rows_;
    Sums sums_;
};

}  // namespace schuss::bindings
