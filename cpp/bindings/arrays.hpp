// The array contract: which arrays may be parameters, gradients and states. Every error message
// names the call, the argument, its value and the expected value.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/array_view.hpp"
#include "numbers/dtype.hpp"

namespace schuss::bindings {

/// What the elements of an array are: numbers of one format, or complex numbers of two components.
struct ElementType {
    numbers::DType dtype;  // of a component
    std::uint8_t components = 1;

    bool operator==(const ElementType&) const = default;
    bool is_complex() const { return components == 2; }
};

/// A shape as messages show it.
std::string text_of(const std::vector<std::size_t>& shape);

bool is_native(const py::dtype& dtype);

/// TypeError for the dtype of an array.
[[noreturn]] void refuse_dtype(const ArrayView& array, const Name& name,
                               const std::string& expected);

/// TypeError unless the array has a supported dtype in native byte order.
ElementType element_type_of(const ArrayView& array, const Name& name);

/// TypeError unless the array is float32 or float64, or complex numbers of them, in native byte
/// order.
ElementType compute_type_of(const ArrayView& array, const Name& name);

/// TypeError or ValueError unless the array has the dtype and shape of the other.
void check_like(const ArrayView& array, const Name& name, const ArrayView& other,
                const std::string& other_name);

/// The dtypes allowed for an array that goes with a parameter.
enum class DtypeRule {
    compute,      // the compute dtype of the parameter
    sum,          // the same, for its first gradient, which becomes the sum of others
    convertible,  // any dtype whose values the compute dtype holds
    stochastic,   // the compute dtype, or bfloat16 for float32
    half,         // float16 or bfloat16, for a float32 parameter
    nonnegative,  // for a complex parameter: its dtype, or that of its components
};

/// TypeError unless the array has such a dtype.
ElementType check_dtype(const ArrayView& array, const Name& name, DtypeRule rule,
                        const ArrayView& parameter, const std::string& parameter_name);

/// TypeError or ValueError unless the array has such a dtype and the shape of the parameter.
ElementType check_compatible(const ArrayView& array, const Name& name, DtypeRule rule,
                             const ArrayView& parameter, const std::string& parameter_name);

/// Whether the elements are blocks of 8-bit state, with a sign or without.
bool has_blocks(const ArrayView& array);

/// TypeError or ValueError unless the array has such blocks for the elements of the parameter.
/// nonnegative: whether the codes are uint8; otherwise they are int8.
ElementType check_blocks(const ArrayView& array, const Name& name, bool nonnegative,
                         const ArrayView& parameter, const std::string& parameter_name);

/// TypeError or ValueError unless the array has a number for each row of the parameter, which must
/// have its rows one after the other.
ElementType check_row_state(const ArrayView& array, const Name& name, const ArrayView& parameter,
                            const std::string& parameter_name);

/// TypeError or ValueError unless the array can be the master of the parameter.
void check_master(const ArrayView& array, const Name& name, const ArrayView& parameter,
                  const std::string& parameter_name);

/// The bits of the parameter that a master has.
inline numbers::Master master_kind(const ArrayView& array) {
    return array.itemsize() == 2 ? numbers::Master::float32 : numbers::Master::float24;
}

/// A gradient of an array as an array, without a copy; a Python or NumPy number, for an array
/// without axes, as a new array of that dtype. TypeError if the object is neither.
py::array as_gradient(py::handle object, const Name& name, const ArrayView& parameter);

/// Whether the elements are contiguous in C order, and their addresses multiples of an alignment.
bool is_c_contiguous(const ArrayView& array, std::size_t alignment);

/// Sets all elements to zero.
void set_to_zero(const ArrayView& array) noexcept;

/// ValueError unless the array is writeable and no two elements of it overlap.
void check_writable(const ArrayView& array, const Name& name);

}  // namespace schuss::bindings
