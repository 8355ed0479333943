// The array contract: what may be a parameter, a gradient, a state, and what is refused, with
// which message. Every refusal names the call, the argument, what it was and what was expected.
#pragma once

#include <string>
#include <vector>

#include "bindings/array_view.hpp"
#include "numbers/dtype.hpp"

namespace schuss::bindings {

/// TypeError unless the elements are of a supported format in native byte order.
numbers::DType number_of(const ArrayView& array, const Name& name);

/// The same, of a format that is computed in.
numbers::DType computed_number_of(const ArrayView& array, const Name& name);

/// TypeError or ValueError unless the array has the format and shape of the other.
void check_like(const ArrayView& array, const Name& name, const ArrayView& other,
                const std::string& other_name);

/// What may be the format of an array that goes with a parameter.
enum class DtypeRule {
    compute,      // that which the parameter is computed in
    convertible,  // any that is computed in the same
    stochastic,   // that which it is computed in, or bfloat16 for float32
    half,         // float16 or bfloat16, for a parameter in float32
};

/// TypeError or ValueError unless the array has such a format and the shape of the parameter.
numbers::DType check_companion(const ArrayView& array, const Name& name, DtypeRule how,
                               const ArrayView& parameter, const std::string& parameter_name);

/// ValueError unless the array can be written, each element in a place of its own.
void check_writable(const ArrayView& array, const Name& name);

}  // namespace schuss::bindings
