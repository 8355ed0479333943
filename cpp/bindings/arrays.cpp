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

/// The dtype in any byte order. bfloat16 is known by its name: that of the dtype of ml_dtypes, or
/// of the only field of a structured dtype, which needs no ml_dtypes.
std::optional<numbers::DType> find_dtype(const py::dtype& dtype) {
    using numbers::DType;
    if (dtype.kind() == 'f') {
        for (const DType candidate : {DType::float32, DType::float64, DType::float16}) {
            if (static_cast<std::size_t>(dtype.itemsize()) == numbers::size_of(candidate)) {
                return candidate;
            }
        }
    }
    if (dtype.kind() != 'V' || dtype.itemsize() != 2) return std::nullopt;
    const bool is_field = py::object(dtype.attr("names")).equal(py::make_tuple("bfloat16"));
    if (is_field || text(dtype.attr("name")) == "bfloat16") return DType::bfloat16;
    return std::nullopt;
}

bool is_native(const py::dtype& dtype) {
    return dtype.attr("isnative").cast<bool>();
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
        refuse_dtype(array, name, names);
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
