// One parameter of a step and its checks.
#pragma once

#include <string>
#include <vector>

#include "bindings/array_view.hpp"
#include "bindings/overlap.hpp"
#include "engine/plan.hpp"

namespace schuss::bindings {

class Parameter {
  public:
    /// An array that goes with the parameter, as messages call it.
    struct AuxArray {
        engine::Role role;
        ArrayView array;
        std::string name;
    };

    /// Checks what can be a parameter.
    Parameter(ArrayView array, const Name& name);

    const std::string& name() const { return name_; }
    const ArrayView& array() const { return array_; }
    const std::vector<AuxArray>& companions() const { return companions_; }

    /// The format that it is computed in.
    numbers::DType computed() const { return numbers::compute_dtype(number_); }

    /// Gives the parameter its companions, checked against it: the states of its rule in their
    /// order, then what rides along.
    void set_companions(std::vector<AuxArray> companions, const std::string& call);

    /// Whether it and its copy are NumPy arrays, and no other objects that show their memory.
    bool is_all_arrays() const;

    /// For Python's collector of cycles.
    int traverse(visitproc visit, void* arg) const;

    /// The arrays that an update writes, with the names they have in messages.
    void append_written(std::vector<Named>& out) const;

    /// ValueError if the copy, which is the user's own array, has become read-only or was resized.
    /// Runs no Python unless it raises.
    void check_copy(const std::string& call) const;

    /// ValueError if the parameter or its copy is no NumPy array, such as a tensor, and was given
    /// other memory. May run the user's code.
    void check_shows_its_memory(const std::string& call) const;

    /// ValueError: the array is not as it was (ArrayCache::parameter_is_unchanged).
    [[noreturn]] void refuse_change(const std::string& call) const;

    /// Lays the item out for a gradient. TypeError or ValueError if its dtype or shape does not go
    /// with the parameter.
    void take(const ArrayView& gradient, const Name& name, engine::Item& item) const;

  private:
    std::string name_;  // in messages
    ArrayView array_;
    numbers::DType number_;
    std::vector<AuxArray> companions_;     // a copy is the last of them
    std::vector<numbers::DType> numbers_;  // of the companions
};

}  // namespace schuss::bindings
