#include "bindings/arrays.hpp"

#include <algorithm>
#include <complex>
#include <optional>

#include "bindings/overlap.hpp"

#include "bindings/register.hpp"

namespace schuss::bindings {
namespace {

std::string text(py::handle object) {
    return py::str(object).cast<std::string>();
}

std::string text(const std::vector<std::size_t>& shape) {
    py::tuple numbers(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) numbers[i] = shape[i];
    return text(numbers);
}

[[noreturn]] void refuse_dtype(const ArrayView& array, const Name& name,
                               const std::string& expected) {
    throw py::type_error(name.text() + " has dtype " + text(array.dtype()) + ", expected " +
                         expected);
}

void check_shape(const ArrayView& array, const Name& name, const ArrayView& other,
                 const std::string& other_name) {
    if (array.shape() == other.shape()) return;
    throw py::value_error(name.text() + " has shape " + text(array.shape()) + ", expected " +
                          text(other.shape()) + " (the shape of " + other_name + ")");
}

/// The dtype in any byte order. bfloat16 comes from ml_dtypes and is known by its name.
std::optional<numbers::DType> find_dtype(const py::dtype& dtype) {
    using numbers::DType;
    if (dtype.kind() == 'f') {
        for (const DType candidate : {DType::float32, DType::float64, DType::float16}) {
            if (static_cast<std::size_t>(dtype.itemsize()) == numbers::size_of(candidate)) {
                return candidate;
            }
        }
    }
    const bool may_be_bfloat16 = dtype.kind() == 'V' && dtype.itemsize() == 2;
    if (may_be_bfloat16 && text(dtype.attr("name")) == "bfloat16") return DType::bfloat16;
    return std::nullopt;
}

bool is_native(const py::dtype& dtype) {
    return dtype.attr("isnative").cast<bool>();
}

/// Whether the object is a scalar of NumPy, such as a float64.
bool is_numpy_scalar(py::handle object) {
    return py::isinstance(object, py::module_::import("numpy").attr("generic"));
}

/// Whether the object is a number that an array of the dtype can represent, rounded. A bool and a
/// duration are not.
bool is_number_for(const py::dtype& dtype, py::handle object) {
    if (PyBool_Check(object.ptr()) != 0) return false;
    if (PyFloat_Check(object.ptr()) != 0 || PyLong_Check(object.ptr()) != 0) return true;
    const bool is_complex = dtype.kind() == 'c';
    if (PyComplex_Check(object.ptr()) != 0) return is_complex;
    if (!is_numpy_scalar(object)) return false;
    const auto own = py::reinterpret_borrow<py::dtype>(object.attr("dtype"));
    return find_dtype(own) || own.kind() == 'i' || own.kind() == 'u' || own.kind() == 'f' ||
           (is_complex && own.kind() == 'c');
}

/// A number as an array without axes in the dtype of a parameter, or in float32 for 16 bits.
py::array array_of_number(py::handle number, const Name& name, const py::dtype& dtype) {
    const Py_complex value = PyComplex_AsCComplex(number.ptr());
    if (PyErr_Occurred() != nullptr) {
        PyErr_Clear();
        throw py::value_error(name.text() + " is a number of too many digits, expected less");
    }
    const std::complex<double> as_double(value.real, value.imag);
    const std::complex<float> as_float(as_double);
    const std::vector<py::ssize_t> shape;
    const bool is_double = dtype.itemsize() == (dtype.kind() == 'c' ? 16 : 8);
    if (dtype.kind() == 'c' && is_double) return {dtype, shape, &as_double};
    if (dtype.kind() == 'c') return {dtype, shape, &as_float};
    if (is_double) return {dtype, shape, &as_double};  // the real part comes first
    return {py::dtype("f4"), shape, &as_float};
}

}  // namespace

numbers::DType dtype_of(const ArrayView& array, const Name& name) {
    const std::optional<numbers::DType> found = find_dtype(array.dtype());
    if (!found) refuse_dtype(array, name, "float32, float64, float16 or bfloat16");
    if (!is_native(array.dtype())) refuse_dtype(array, name, "native byte order");
    return *found;
}

numbers::DType compute_dtype_of(const ArrayView& array, const Name& name) {
    const std::optional<numbers::DType> found = find_dtype(array.dtype());
    const bool is_computed = found && *found == numbers::compute_dtype(*found);
    if (!is_computed) refuse_dtype(array, name, "float32 or float64");
    return dtype_of(array, name);
}

void check_like(const ArrayView& array, const Name& name, const ArrayView& other,
                const std::string& other_name) {
    if (!array.dtype().equal(other.dtype())) {
        refuse_dtype(array, name, text(other.dtype()) + " (the dtype of " + other_name + ")");
    }
    check_shape(array, name, other, other_name);
}

numbers::DType check_compatible(const ArrayView& array, const Name& name, DtypeRule rule,
                                const ArrayView& parameter, const std::string& parameter_name) {
    using numbers::DType;
    const DType of_parameter = find_dtype(parameter.dtype()).value();
    const DType computed = numbers::compute_dtype(of_parameter);
    std::vector<DType> expected;
    const auto expect = [&expected](DType dtype) {
        if (std::find(expected.begin(), expected.end(), dtype) == expected.end()) {
            expected.push_back(dtype);
        }
    };
    if (rule == DtypeRule::convertible) expect(of_parameter);
    if (rule != DtypeRule::half) expect(computed);
    if (computed == DType::float32) {
        if (rule == DtypeRule::convertible || rule == DtypeRule::half) expect(DType::float16);
        if (rule != DtypeRule::compute) expect(DType::bfloat16);
    }
    const std::optional<DType> found = find_dtype(array.dtype());
    const bool is_expected =
        found && std::find(expected.begin(), expected.end(), *found) != expected.end();
    if (!is_expected || !is_native(array.dtype())) {
        std::string names;
        for (std::size_t i = 0; i < expected.size(); ++i) {
            if (i > 0) names += i + 1 < expected.size() ? ", " : " or ";
            names += numbers::dtype_name(expected[i]);
            if (expected[i] == of_parameter) names += " (the dtype of " + parameter_name + ")";
        }
        const bool is_real = std::string("fiub").find(array.dtype().kind()) != std::string::npos;
        if (rule == DtypeRule::convertible && is_real) {
            names += " (" + name.argument + ".astype(np." + numbers::dtype_name(computed) +
                     ") converts it)";
        }
        refuse_dtype(array, name, names);
    }
    check_shape(array, name, parameter, parameter_name);
    return *found;
}

py::array as_gradient(py::handle object, const Name& name, const ArrayView& parameter) {
    if (parameter.ndim() == 0 && is_number_for(parameter.dtype(), object)) {
        py::array array = array_of_number(object, name, parameter.dtype());
        array.attr("setflags")(py::arg("write") = false);  // the number itself cannot be cleared
        return array;
    }
    return as_array(object, name);
}

void check_writable(const ArrayView& array, const Name& name) {
    if (!array.writeable()) {
        if (is_numpy_scalar(array.object())) {
            throw py::type_error(name.text() + " is a " + text(array.dtype()) +
                                 " number, expected an array (np.array(x) makes one)");
        }
        throw py::value_error(name.text() +
                              " is read-only, expected a writeable array (np.array(x) copies it)");
    }
    if (elements_overlap(array)) {
        throw py::value_error(name.text() +
                              " has elements that overlap in memory (a broadcast view?), expected "
                              "no two elements to share memory");
    }
}

void register_arrays(py::module_& module) {
    // A view of an array that NumPy does not resize while the view lives.
    module.def(
        "held", [](py::handle array) { return ArrayView(array, {"held", "array"}).plain(); },
        py::arg("array"));
}

}  // namespace schuss::bindings
