// One parameter of a step: its checks, and what of them need not be done again.
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

    /// ValueError unless the array is as it was: it may not be resized, seen as another, or frozen
    /// in place.
    void check_unchanged(const std::string& call) const;

    /// Whether the gradient differs from the last one at most in where it lies, and lies where
    /// nothing is written. Then it is placed in the item, and nothing is left to check.
    bool take_like_the_last(const py::array& gradient, engine::Item& item) const;

    /// Whether the gradient still lies as it did when it was taken.
    bool lies_as_taken(const py::array& gradient, const engine::Item& item) const;

    /// Checks a gradient whole, and lays the item out for it.
    void take(const py::array& gradient, const Name& name, const WrittenMemory& written,
              engine::Item& item);

  private:
    std::string name_;  // in messages
    py::array array_;
    numbers::Number number_;
    std::vector<std::size_t> shape_;
    std::vector<py::ssize_t> strides_;
    py::object dtype_;
    std::byte* data_;
    std::vector<py::array> states_;
    std::vector<std::string> state_names_;

    /// What the last gradient was found to be.
    struct Gradient {
        py::object dtype;  // none yet
        std::size_t misalignment = 0;
        std::size_t before = 0, after = 0;  // how far it reaches to both sides of its first element
        Bounds gap{1, 0};                   // around it, where nothing is written
        std::vector<py::ssize_t> strides;
    };
    bool looks_like_the_last(const py::array& gradient) const;

    Gradient last_;
};

}  // namespace schuss::bindings
