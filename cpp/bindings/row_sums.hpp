// Sums of gradients that are rows.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/parameter.hpp"
#include "bindings/sorted_rows.hpp"
#include "engine/row_order.hpp"
#include "engine/step.hpp"

namespace schuss::bindings {

/// For each parameter, the distinct rows that were added, and the sum of each, in the compute
/// dtype.
class RowSums {
  public:
    explicit RowSums(const Parameters& parameters)
        : parameters_(parameters), sums_(parameters.size()) {}

    bool has(std::size_t parameter) const { return static_cast<bool>(sums_[parameter]); }

    /// The sum of a parameter that has one, as an instance of `Rows`.
    py::handle rows(std::size_t parameter) const { return sums_[parameter]; }

    /// The same as a new array, zero elsewhere.
    py::array dense(std::size_t parameter) const;

    /// Gradients that are to be added. Nothing changes before `run`.
    class Addition {
      public:
        Addition(const RowSums& sums, double scale) : sums_(sums), scale_(scale) {}

        /// Adds the gradient of a parameter.
        void add(std::size_t parameter, const SortedRows& rows);

        /// Drops the sum of a parameter.
        void drop(std::size_t parameter) { results_.emplace_back(parameter, py::object()); }

        /// Call this before `run`. It may throw; `run` cannot.
        void prepare() { accumulator_.plan.prepare(); }
        std::size_t elements() const { return accumulator_.plan.elements(); }

        /// Sets the new sums; the addition has the old ones then. Needs no GIL.
        void run(RowSums& sums) noexcept;

      private:
        const RowSums& sums_;
        double scale_;
        engine::Accumulator accumulator_;
        std::vector<py::object> gradients_;  // kept until the run
        std::vector<std::pair<std::size_t, py::object>> results_;
    };

    /// Drops all sums, which may run user code.
    void drop() noexcept;

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const;

  private:
    const Parameters& parameters_;
    std::vector<py::object> sums_;  // of the parameters; some are null
};

}  // namespace schuss::bindings
