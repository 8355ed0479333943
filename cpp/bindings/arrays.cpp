#include "bindings/arrays.hpp"

#include <algorithm>
#include <optional>
#include <utility>

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

bool is_native(const py::dtype& dtype) {
    return dtype.attr("isnative").cast<bool>();
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
        if (rule != DtypeRule::compute) expect(DType::bfloat16);
    }
    return expected;
}

/// What a user can do about a gradient of the wrong kind, as the end of a message.
std::string remedy_for(const std::optional<ElementType>& gradient, const ElementType& parameter) {
    if (gradient && gradient->is_complex() && !parameter.is_complex()) {
        return "; the gradient of a real parameter is real (.real takes the real part)";
    }
    if (!parameter.is_complex()) return "";
    return "; .astype(np." + name_of(parameter) + ") converts it";
}

}  // namespace

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

ElementType check_compatible(const ArrayView& array, const Name& name, DtypeRule rule,
                             const ArrayView& parameter, const std::string& parameter_name) {
    const ElementType of_parameter = find_type(parameter.dtype()).value();
    const std::vector<ElementType> expected = expected_types(rule, of_parameter);
    const std::optional<ElementType> found = find_type(array.dtype());
    const bool is_expected =
        found && std::find(expected.begin(), expected.end(), *found) != expected.end();
    if (!is_expected || !is_native(array.dtype())) {
        std::string names;
        for (std::size_t i = 0; i < expected.size(); ++i) {
            if (i > 0) names += i + 1 < expected.size() ? ", " : " or ";
            names += name_of(expected[i]);
            if (expected[i] == of_parameter) names += " (the dtype of " + parameter_name + ")";
        }
        const bool is_gradient = rule == DtypeRule::convertible;
        refuse_dtype(array, name, names + (is_gradient ? remedy_for(found, of_parameter) : ""));
    }
    check_shape(array, name, parameter, parameter_name);
    return *found;
}

void check_writable(const ArrayView& array, const Name& name) {
    if (!array.writeable()) {
        throw py::value_error(name.text() + " is read-only, expected a writeable array");
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
