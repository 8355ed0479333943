// The array contract: what may be a parameter, a gradient, a state, and what is refused, with
// which message. Every refusal names the call, the argument, what it was and what was expected.
#pragma once

#include <string>
#include <vector>

#include "bindings/array_view.hpp"
#include "numbers/number.hpp"

namespace schuss::bindings {

/// TypeError unless the elements are of a supported format in native byte order.
numbers::Number number_of(const ArrayView& array, const Name& name);

/// The same, of a format that is computed in.
numbers::Number computed_number_of(const ArrayView& array, const Name& name);

/// TypeError or ValueError unless the array has the format and shape of the other.
void check_like(const ArrayView& array, const Name& name, const ArrayView& other,
                const std::string& other_name);

/// What may be the format of an array that goes with a parameter.
enum class Goes {
    as_computed,        // that which the parameter is computed in
    converted,          // any that is computed in the same
    rounded_at_random,  // that which it is computed in, or bfloat16 for float32
    halved,             // float16 or bfloat16, for a parameter in float32
};

/// TypeError or ValueError unless the array has such a format and the shape of the parameter.
numbers::Number check_goes_with(const ArrayView& array, const Name& name, Goes how,
                                const ArrayView& parameter, const std::string& parameter_name);

/// ValueError unless the array can be written, each element in a place of its own.
void check_writable(const ArrayView& array, const Name& name);

}  // namespace schuss::bindings
