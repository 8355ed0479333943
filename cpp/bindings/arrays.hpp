// The array contract: which arrays may be parameters, gradients and states. Every error message
// names the call, the argument, its value and the expected value.
#pragma once

#include <string>
#include <vector>

#include "bindings/array_view.hpp"
#include "numbers/dtype.hpp"

namespace schuss::bindings {

/// TypeError unless the array has a supported dtype in native byte order.
numbers::DType dtype_of(const ArrayView& array, const Name& name);

/// TypeError unless the array is float32 or float64 in native byte order.
numbers::DType compute_dtype_of(const ArrayView& array, const Name& name);

/// TypeError or ValueError unless the array has the dtype and shape of the other.
void check_like(const ArrayView& array, const Name& name, const ArrayView& other,
                const std::string& other_name);

/// The dtypes allowed for an array that goes with a parameter.
enum class DtypeRule {
    compute,      // the compute dtype of the parameter
    convertible,  // any dtype with the same compute dtype
    stochastic,   // the compute dtype, or bfloat16 for float32
    half,         // float16 or bfloat16, for a float32 parameter
};

/// TypeError or ValueError unless the array has such a dtype and the shape of the parameter.
numbers::DType check_compatible(const ArrayView& array, const Name& name, DtypeRule rule,
                                const ArrayView& parameter, const std::string& parameter_name);

/// A gradient of an array as an array, without a copy; a Python or NumPy number, for an array
/// without axes, as a new array of that dtype. TypeError if the object is neither.
py::array as_gradient(py::handle object, const Name& name, const ArrayView& parameter);

/// ValueError unless the array is writeable and no two elements of it overlap.
void check_writable(const ArrayView& array, const Name& name);

}  // namespace schuss::bindings
