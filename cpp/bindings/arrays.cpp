#include "bindings/arrays.hpp"

#include <algorithm>
#include <complex>
#include <cstring>
#include <optional>
#include <utility>

#include "bindings/overlap.hpp"

#include "bindings/register.hpp"

namespace schuss::bindings {
namespace {

std::string text(py::handle object) {
    return py::str(object).cast<std::string>();
}

void check_shape(const ArrayView& array, const Name& name, const ArrayView& other,
                 const std::string& other_name) {
    if (array.shape() == other.shape()) return;
    throw py::value_error(name.text() + " has shape " + text_of(array.shape()) + ", expected " +
                          text_of(other.shape()) + " (the shape of " + other_name + ")");
}

constexpr ElementType complex64{numbers::DType::float32, 2};
constexpr ElementType complex128{numbers::DType::float64, 2};

/// The type in any byte order. bfloat16 is known by its name: that of the dtype of ml_dtypes, or of
/// the only field of a structured dtype, which needs no ml_dtypes.
std::optional<ElementType> find_type(const py::dtype& dtype) {
    using numbers::DType;
    const auto size = static_cast<std::size_t>(dtype.itemsize());
    if (dtype.kind() == 'f') {
        for (const DType candidate : {DType::float32, DType::float64, DType::float16}) {
            if (size == numbers::size_of(candidate)) return ElementType{candidate};
        }
    }
    if (dtype.kind() == 'c') {
        for (const ElementType candidate : {complex64, complex128}) {
            if (size == 2 * numbers::size_of(candidate.dtype)) return candidate;
        }
    }
    if (dtype.kind() != 'V' || size != 2) return std::nullopt;
    const bool is_field = py::object(dtype.attr("names")).equal(py::make_tuple("bfloat16"));
    if (is_field || text(dtype.attr("name")) == "bfloat16") return ElementType{DType::bfloat16};
    return std::nullopt;
}

std::string name_of(const ElementType& type) {
    if (type == complex64) return "complex64";
    return type == complex128 ? "complex128" : numbers::dtype_name(type.dtype);
}

/// The types that the rule allows for an array that goes with a parameter, the first preferred.
std::vector<ElementType> expected_types(DtypeRule rule, const ElementType& parameter) {
    using numbers::DType;
    const DType computed = numbers::compute_dtype(parameter.dtype);
    const bool is_convertible = rule == DtypeRule::convertible;
    if (parameter.is_complex()) {
        if (rule == DtypeRule::nonnegative) return {parameter, {computed}};
        if (is_convertible && parameter == complex128) return {parameter, complex64};
        return {parameter};
    }
    std::vector<ElementType> expected;
    const auto expect = [&expected](DType dtype) {
        if (std::find(expected.begin(), expected.end(), ElementType{dtype}) == expected.end()) {
            expected.push_back({dtype});
        }
    };
    if (is_convertible) expect(parameter.dtype);
    if (rule != DtypeRule::half) expect(computed);
    if (is_convertible) expect(DType::float32);
    if (computed == DType::float32 || is_convertible) {
        if (is_convertible || rule == DtypeRule::half) expect(DType::float16);
        const bool is_computed = rule == DtypeRule::compute || rule == DtypeRule::sum;
        if (!is_computed) expect(DType::bfloat16);
    }
    return expected;
}

/// What a user can do about a gradient of the wrong dtype, as the end of a message.
std::string remedy_for(const ArrayView& gradient, const Name& name, const ElementType& parameter) {
    const char kind = gradient.dtype().kind();
    if (kind == 'c' && !parameter.is_complex()) {
        return "; the gradient of a real parameter is real (.real takes the real part)";
    }
    if (std::string("fiubc").find(kind) == std::string::npos) return "";
    const ElementType target{numbers::compute_dtype(parameter.dtype), parameter.components};
    return " (" + name.argument + ".astype(np." + name_of(target) + ") converts it)";
}

/// The dtype of a block of 8-bit state, numbers::Square8.
py::dtype block_dtype(bool nonnegative) {
    const py::tuple scale = py::make_tuple("scale", "=f4");
    const py::tuple codes = py::make_tuple("codes", nonnegative ? "u1" : "i1",
                                           py::make_tuple(sizeof numbers::Square8::codes));
    py::list fields;
    fields.append(scale);
    fields.append(codes);
    return py::dtype::from_args(fields);
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
    if (own.kind() == 'c') return is_complex;
    return find_type(own) || own.kind() == 'i' || own.kind() == 'u' || own.kind() == 'f';
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

/// Sets the elements along the axes from `axis` on to zero.
void set_to_zero(const ArrayView& array, std::byte* first, std::size_t axis) noexcept {
    const std::size_t size = array.itemsize();
    if (axis == array.ndim()) {
        std::memset(first, 0, size);
        return;
    }
    const std::size_t count = array.shape()[axis];
    const std::ptrdiff_t stride = array.strides()[axis];
    if (axis + 1 == array.ndim() && stride == static_cast<std::ptrdiff_t>(size)) {
        std::memset(first, 0, count * size);
        return;
    }
    for (std::size_t i = 0; i < count; ++i, first += stride) set_to_zero(array, first, axis + 1);
}

}  // namespace

std::string text_of(const std::vector<std::size_t>& shape) {
    py::tuple numbers(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) numbers[i] = shape[i];
    return text(numbers);
}

bool is_native(const py::dtype& dtype) {
    const char order = dtype.byteorder();
    return order == '=' || order == '|' || dtype.attr("isnative").cast<bool>();
}

void refuse_dtype(const ArrayView& array, const Name& name, const std::string& expected) {
    throw py::type_error(name.text() + " has dtype " + text(array.dtype()) + ", expected " +
                         expected);
}

ElementType element_type_of(const ArrayView& array, const Name& name) {
    const std::optional<ElementType> found = find_type(array.dtype());
    if (!found) {
        refuse_dtype(array, name, "float32, float64, float16, bfloat16, complex64 or complex128");
    }
    if (!is_native(array.dtype())) refuse_dtype(array, name, "native byte order");
    return *found;
}

ElementType compute_type_of(const ArrayView& array, const Name& name) {
    const std::optional<ElementType> found = find_type(array.dtype());
    const bool is_computed = found && found->dtype == numbers::compute_dtype(found->dtype);
    if (!is_computed) refuse_dtype(array, name, "float32, float64, complex64 or complex128");
    return element_type_of(array, name);
}

void check_like(const ArrayView& array, const Name& name, const ArrayView& other,
                const std::string& other_name) {
    if (!array.dtype().equal(other.dtype())) {
        refuse_dtype(array, name, text(other.dtype()) + " (the dtype of " + other_name + ")");
    }
    check_shape(array, name, other, other_name);
}

ElementType check_dtype(const ArrayView& array, const Name& name, DtypeRule rule,
                        const ArrayView& parameter, const std::string& parameter_name) {
    const ElementType of_parameter = find_type(parameter.dtype()).value();
    const std::optional<ElementType> found = find_type(array.dtype());
    // The usual case needs no list of what is expected.
    const bool is_computed = of_parameter.dtype == numbers::compute_dtype(of_parameter.dtype);
    const bool is_same = found == of_parameter && is_computed && rule != DtypeRule::half;
    const auto is_among = [&found](const std::vector<ElementType>& types) {
        return found && std::find(types.begin(), types.end(), *found) != types.end();
    };
    const bool is_expected = is_same || is_among(expected_types(rule, of_parameter));
    if (!is_expected || !is_native(array.dtype())) {
        const std::vector<ElementType> expected = expected_types(rule, of_parameter);
        std::string names;
        for (std::size_t i = 0; i < expected.size(); ++i) {
            if (i > 0) names += i + 1 < expected.size() ? ", " : " or ";
            names += name_of(expected[i]);
            if (expected[i] == of_parameter) names += " (the dtype of " + parameter_name + ")";
        }
        if (rule == DtypeRule::convertible) names += remedy_for(array, name, of_parameter);
        if (rule == DtypeRule::sum) {
            names += is_among(expected_types(DtypeRule::convertible, of_parameter))
                         ? " (overwrite_grads=False copies it into such a sum)"
                         : remedy_for(array, name, of_parameter);
        }
        if (has_blocks(array)) names += " (optimizers have 8-bit state: state_dtype='8bit')";
        refuse_dtype(array, name, names);
    }
    return *found;
}

ElementType check_compatible(const ArrayView& array, const Name& name, DtypeRule rule,
                             const ArrayView& parameter, const std::string& parameter_name) {
    const ElementType type = check_dtype(array, name, rule, parameter, parameter_name);
    check_shape(array, name, parameter, parameter_name);
    return type;
}

bool has_blocks(const ArrayView& array) {
    if (array.dtype().kind() != 'V' || array.itemsize() != sizeof(numbers::Square8)) return false;
    return array.dtype().equal(block_dtype(false)) || array.dtype().equal(block_dtype(true));
}

ElementType check_blocks(const ArrayView& array, const Name& name, bool nonnegative,
                         const ArrayView& parameter, const std::string& parameter_name) {
    const ElementType type = find_type(parameter.dtype()).value();
    if (type.is_complex() || numbers::compute_dtype(type.dtype) != numbers::DType::float32) {
        throw py::value_error(name.text() + " is in 8 bits where " + parameter_name + " is " +
                              name_of(type) +
                              ", expected parameters in float32, float16 or bfloat16");
    }
    const py::dtype expected = block_dtype(nonnegative);
    if (!array.dtype().equal(expected)) refuse_dtype(array, name, text(expected));
    constexpr std::size_t block = numbers::block_of(numbers::DType::square8);
    const std::size_t blocks = (parameter.size() + block - 1) / block;
    if (array.shape() != std::vector{blocks}) {
        throw py::value_error(name.text() + " has shape " + text_of(array.shape()) + ", expected " +
                              text_of(std::vector{blocks}) + " (a block for each " +
                              std::to_string(block) + " elements of " + parameter_name + ")");
    }
    const auto size = static_cast<std::ptrdiff_t>(array.itemsize());
    const bool has_gaps = blocks > 1 && array.strides()[0] != size;
    const auto address = reinterpret_cast<std::size_t>(array.data());
    if (has_gaps || address % alignof(numbers::Square8) != 0) {
        throw py::value_error(name.text() +
                              " has gaps or is not aligned, expected a contiguous, aligned array "
                              "(np.array(x) copies it)");
    }
    return {numbers::DType::square8};
}

ElementType check_row_state(const ArrayView& array, const Name& name, const ArrayView& parameter,
                            const std::string& parameter_name) {
    const ElementType of_parameter = find_type(parameter.dtype()).value();
    if (of_parameter.is_complex()) {
        throw py::value_error(name.call + ": " + parameter_name + " is " + name_of(of_parameter) +
                              ", expected real numbers for state by row (view it as such: "
                              "x.view(np.float32) or np.float64)");
    }
    if (!is_c_contiguous(parameter, 1)) {
        throw py::value_error(name.call + ": " + parameter_name +
                              " is not C-contiguous, expected rows one after the other for state "
                              "by row (np.ascontiguousarray(x) copies it)");
    }
    const ElementType expected{numbers::compute_dtype(of_parameter.dtype)};
    if (find_type(array.dtype()) != expected || !is_native(array.dtype())) {
        refuse_dtype(array, name, name_of(expected));
    }
    std::vector<std::size_t> shape;
    if (parameter.ndim() > 0) shape.push_back(parameter.shape()[0]);
    if (array.shape() != shape) {
        throw py::value_error(name.text() + " has shape " + text_of(array.shape()) + ", expected " +
                              text_of(shape) + " (a number for each row of " + parameter_name +
                              ")");
    }
    if (!is_c_contiguous(array, array.itemsize())) {
        throw py::value_error(name.text() +
                              " has gaps or is not aligned, expected a contiguous, aligned array "
                              "(np.array(x) copies it)");
    }
    return expected;
}

void check_master(const ArrayView& array, const Name& name, const ArrayView& parameter,
                  const std::string& parameter_name) {
    const ElementType type = find_type(parameter.dtype()).value();
    if (type.dtype != numbers::DType::bfloat16) {
        throw py::value_error(name.text() + " is given where " + parameter_name + " is " +
                              name_of(type) +
                              ", expected None: only bfloat16 lacks bits of float32");
    }
    const bool is_integer = array.dtype().kind() == 'i' && is_native(array.dtype());
    if (!is_integer || array.itemsize() > 2) refuse_dtype(array, name, "int16 or int8");
    check_shape(array, name, parameter, parameter_name);
}

py::array as_gradient(py::handle object, const Name& name, const ArrayView& parameter) {
    if (parameter.ndim() == 0 && is_number_for(parameter.dtype(), object)) {
        py::array array = array_of_number(object, name, parameter.dtype());
        array.attr("setflags")(py::arg("write") = false);  // the number itself cannot be cleared
        return array;
    }
    return as_array(object, name);
}

bool is_c_contiguous(const ArrayView& array, std::size_t alignment) {
    if (array.size() == 0) return true;
    auto stride = static_cast<std::ptrdiff_t>(array.itemsize());
    for (std::size_t axis = array.ndim(); axis-- > 0;) {
        if (array.shape()[axis] == 1) continue;
        if (array.strides()[axis] != stride) return false;
        stride *= static_cast<std::ptrdiff_t>(array.shape()[axis]);
    }
    return reinterpret_cast<std::uintptr_t>(array.data()) % alignment == 0;
}

void set_to_zero(const ArrayView& array) noexcept {
    if (array.size() > 0) set_to_zero(array, array.data(), 0);
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
    module.def(
        "bfloat16_dtype",
        [](std::string call, std::string argument) {
            return bfloat16_dtype({std::move(call), std::move(argument)});
        },
        py::arg("call"), py::arg("argument"));
    // A view of an array that NumPy does not resize while the view lives.
    module.def(
        "held", [](py::handle array) { return ArrayView(array, {"held", "array"}).plain(); },
        py::arg("array"));
}

}  // namespace schuss::bindings
