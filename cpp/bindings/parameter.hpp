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
    /// An array that goes with the parameter, as messages call it.
    struct Companion {
        engine::Role role;
        py::array array;
        std::string name;
    };

    /// Checks what can be a parameter.
    Parameter(py::handle object, const Name& name);

    const py::array& array() const { return array_; }

    /// The format that it is computed in.
    numbers::Number computed() const { return numbers::computed(number_); }

    /// Gives the parameter its companions, checked against it: the states of its rule in their
    /// order, then what rides along.
    void set_companions(std::vector<Companion> companions, const std::string& call);

    /// For Python's collector of cycles.
    int traverse(visitproc visit, void* arg) const;

    /// The arrays that an update writes, with the names they have in messages.
    void append_written(std::vector<WrittenMemory::Entry>& out) const;

    /// ValueError if the copy, which is the user's own array, has become read-only or was resized.
    void check_copy(const std::string& call) const;

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
    std::vector<Companion> companions_;
    py::array copy_;                        // as the user holds it
    std::vector<numbers::Number> numbers_;  // of the companions
};

}  // namespace schuss::bindings
