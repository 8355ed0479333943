// One parameter of a step and its checks.
#pragma once

#include <pybind11/numpy.h>

#include <string>
#include <vector>

#include "bindings/arrays.hpp"
#include "engine/plan.hpp"

namespace schuss::bindings {

class Parameter {
  public:
    /// Checks what can be a parameter.
    Parameter(py::handle object, const Name& name);

    const py::array& array() const { return array_; }
    numbers::Number number() const { return number_; }

    /// Gives the parameter its states, checked against it.
    void set_states(std::vector<py::array> states, const std::string& call,
                    const std::vector<std::string>& names);

    /// The arrays that an update writes, with the names they have in messages.
    void append_written(std::vector<WrittenMemory::Entry>& out) const;

    /// ValueError: the array is not as it was (Glances::parameter_is_unchanged).
    [[noreturn]] void refuse_change(const std::string& call) const;

    /// Checks a gradient whole, and lays the item out for it. Returns the gap around it, where
    /// nothing is written; empty if it lies among what is.
    Bounds take(const py::array& gradient, const Name& name, const WrittenMemory& written,
                engine::Item& item) const;

  private:
    std::string name_;  // in messages
    py::array array_;
    numbers::Number number_;
    std::vector<py::array> states_;
    std::vector<std::string> state_names_;
};

}  // namespace schuss::bindings
