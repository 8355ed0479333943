// The gradients of one step: their conversion, their checks, and the cache of their metadata.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "bindings/array_cache.hpp"
#include "bindings/array_view.hpp"
#include "bindings/overlap.hpp"
#include "bindings/parameter.hpp"
#include "bindings/row_gradients.hpp"
#include "bindings/row_sums.hpp"
#include "bindings/tree.hpp"
#include "engine/plan.hpp"
#include "engine/step.hpp"

namespace schuss::bindings {

class Gradients {
  public:
    /// parameters: the arrays that the gradients update. argument: what messages call the
    /// gradients. The references must stay valid.
    Gradients(const Tree& tree, const Parameters& parameters, engine::Plan& plan,
              std::string argument);

    const std::string& argument() const { return argument_; }

    /// A gradient as messages call it.
    std::string name(std::size_t i) const { return tree_.name(argument_, i); }

    /// Sets the arrays that gradients must not share memory with. Leaves the previous ones in
    /// `written`: the caller decides when they are dropped, which may run user code.
    void set_written(WriteSet&& written) noexcept;

    /// Whether gradients of the step under way are rows.
    bool has_rows() const { return has_rows_; }

    const WriteSet& written() const { return written_; }

    /// ValueError if a parameter or its copy changed. Runs no Python code unless it raises.
    void check_parameter(std::size_t i, const std::string& call) const;

    /// Checks every gradient of the next step in full.
    void invalidate() noexcept;

    /// Sets the parameters that rest even if they have gradients, in ascending order.
    void set_frozen(std::vector<std::size_t> frozen) noexcept { frozen_ = std::move(frozen); }
    const std::vector<std::size_t>& frozen() const { return frozen_; }

    /// Sets what takes the gradients that are rows; without it, they are refused. The reference
    /// must stay valid.
    void set_rows(RowGradients& rows) noexcept { rows_ = &rows; }

    /// Sets whether parameters that rest are checked for changes.
    void set_checks_resting(bool checks) noexcept { checks_resting_ = checks; }

    /// Drops the gradients of a step at its end, and those that a forked thread left.
    class Session {
      public:
        explicit Session(Gradients& gradients) : gradients_(gradients) { clear(); }
        ~Session() { clear(); }
        Session(const Session&) = delete;
        Session& operator=(const Session&) = delete;

      private:
        void clear() {
            gradients_.arrays_.clear();
            gradients_.some_rest_ = false;
            if (std::exchange(gradients_.has_rows_, false)) gradients_.rows_->drop();
        }
        Gradients& gradients_;
    };

    /// Reads the gradients from a structure; a parameter whose gradient is None rests.
    /// May run user code.
    void read(py::handle structure, const std::string& call);

    /// The same for the leaves of a structure. resting: parameters that rest too.
    void read(std::vector<py::object> leaves, const std::string& call,
              const std::vector<std::size_t>& resting);

    /// Uses the sums of accumulated gradients.
    void read(const Parameters& sums, const engine::Accumulator& accumulator,
              const RowSums& of_rows, const std::string& call);

    /// Keeps NumPy from resizing the gradients while other threads run. The first step does not
    /// know the number of elements yet and holds nothing here, but `bind` returns views of all
    /// gradients. always: also if no other thread runs now.
    std::vector<py::object> hold(bool always = false) const;

    /// Views of the gradients whose metadata differ from the step before, with their indices.
    using Views = std::vector<std::pair<std::size_t, ArrayView>>;

    /// Checks the parameters and the gradients, and lays out the gradients that differ from the
    /// step before. must_clear: whether the step sets the gradients to zero. reads_all: whether it
    /// reads the parameters that rest; call `invalidate` where that changes. The returned views
    /// must live until the step is over. After the last check, no user code runs.
    Views bind(const std::string& call, bool must_clear, bool reads_all = false);

    /// New arrays of the gradients' memory; None for parameters that rest.
    py::list arrays(const std::string& call) const;

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const { return written_.traverse(visit, arg); }
    WriteSet release() noexcept;

  private:
    const py::array& array(std::size_t i) const {
        return static_cast<const py::array&>(arrays_[i]);
    }

    /// Whether gradient i is in a container.
    bool has_path(std::size_t i) const { return name(i) != argument_; }
    bool rests(std::size_t i) const { return some_rest_ && rests_[i]; }
    void convert(const std::string& call);
    void convert_leaf(std::size_t i, const Name& name);
    void take_rows(std::size_t i, py::handle rows, const Name& name);
    void rest(std::size_t i);
    void rest_frozen();
    void learn(const Views& views, const std::string& call);
    void check_can_be_cleared(const Views& views, const std::string& call) const;
    void check_nothing_changed(const std::string& call) const;

    const Tree& tree_;
    const Parameters& parameters_;
    engine::Plan& plan_;
    std::string argument_;
    std::vector<py::object> arrays_;  // of the step under way; a parameter that rests stands for
                                      // its gradient
    std::vector<bool> rests_;         // in the step under way, if some_rest_
    bool some_rest_ = false;
    bool checks_resting_ = true;
    RowGradients* rows_ = nullptr;
    bool has_rows_ = false;  // whether it has taken some in the step under way
    std::vector<std::size_t> frozen_;
    WriteSet written_;
    ArrayCache cache_;
};

}  // namespace schuss::bindings
