#include "bindings/rows.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include <pybind11/stl.h>

#include "bindings/collectable.hpp"
#include "bindings/containers.hpp"
#include "bindings/fast_call.hpp"
#include "bindings/register.hpp"

namespace schuss::bindings {
namespace {

/// The class, and the function that reads sparse arrays of other libraries. Kept until the process
/// ends.
PyTypeObject* rows_class = nullptr;
PyObject* sparse_reader = nullptr;

void check_integers(const ArrayView& array, const Name& name) {
    const py::dtype& dtype = array.dtype();
    const bool is_integer = dtype.kind() == 'i' && (array.itemsize() == 4 || array.itemsize() == 8);
    if (is_integer && is_native(dtype)) return;
    std::string expected = is_integer ? "native byte order" : "int32 or int64";
    if (dtype.kind() == 'b') {
        expected += " (np.flatnonzero(" + name.argument + ") has those of a mask)";
    } else if (std::string("iuf").find(dtype.kind()) != std::string::npos) {
        expected += " (" + name.argument + ".astype(np.int64) converts them)";
    }
    refuse_dtype(array, name, expected);
}

/// Copies the integers along the axes from `axis` on, in C order. T: their type. Returns the end of
/// the copy.
template <class T>
std::int64_t* copy(const ArrayView& array, const std::byte* first, std::size_t axis,
                   std::int64_t* to) {
    const bool has_axis = axis < array.ndim();
    const std::size_t count = has_axis ? array.shape()[axis] : 1;
    const std::ptrdiff_t stride = has_axis ? array.strides()[axis] : 0;
    if (axis + 1 < array.ndim()) {
        for (std::size_t i = 0; i < count; ++i, first += stride) {
            to = copy<T>(array, first, axis + 1, to);
        }
        return to;
    }
    for (std::size_t i = 0; i < count; ++i, first += stride) {
        T value;
        std::memcpy(&value, first, sizeof value);  // it need not be aligned
        *to++ = value;
    }
    return to;
}

/// The position of an element as messages show it: "3", or "(1, 3)".
std::string position(const std::vector<std::size_t>& shape, std::size_t element) {
    std::vector<std::size_t> at(shape.size());
    for (std::size_t axis = shape.size(); axis-- > 0; element /= shape[axis]) {
        at[axis] = element % shape[axis];
    }
    return at.size() == 1 ? std::to_string(at[0]) : text_of(at);
}

[[noreturn]] void refuse_index(std::int64_t index, const std::string& at, const Name& name,
                               std::size_t rows, const std::string& parameter_name) {
    const std::string expected =
        rows == 0 ? "no indices: " + parameter_name + " has no rows"
                  : "0 to " + std::to_string(rows - 1) + " (the rows of " + parameter_name + ")";
    throw py::value_error(name.text() + " has the index " + std::to_string(index) + " at " + at +
                          ", expected " + expected);
}

/// The rows of any object. pybind11 itself would make an object without `__init__` an empty one.
const Rows& checked(py::handle object) {
    if (!is_rows(object)) {
        throw py::type_error("a method of Rows has a " + kind_of(object) + ", expected a Rows");
    }
    return rows_in(object);
}

}  // namespace

Rows::Rows(py::handle indices, py::handle values, std::optional<std::int64_t> length)
    : length_(length) {
    const Name of_indices{"Rows", "indices"}, of_values{"Rows", "values"};
    indices_ = ArrayView(indices, of_indices);
    values_ = ArrayView(values, of_values);
    check_integers(indices_, of_indices);
    if (indices_.ndim() != 1) {
        throw py::value_error(of_indices.text() + " has shape " + text_of(indices_.shape()) +
                              ", expected one axis");
    }
    element_type_of(values_, of_values);
    if (length && *length < 0) {
        throw py::value_error("Rows: length is " + std::to_string(*length) +
                              ", expected None or a number of rows");
    }
    if (values_.ndim() > 0 && values_.shape()[0] == size()) return;
    throw py::value_error(of_values.text() + " has shape " + text_of(values_.shape()) +
                          ", expected (" + std::to_string(size()) +
                          ", ...): a row for each of the indices");
}

ElementType Rows::check_values(const Name& name, const ArrayView& parameter,
                               const std::string& parameter_name) const {
    const Name of_values{name.call, name.argument + ".values"};
    const ElementType type =
        check_dtype(values_, of_values, DtypeRule::convertible, parameter, parameter_name);
    if (parameter.ndim() == 0) {
        throw py::type_error(name.text() + " is a Rows where " + parameter_name +
                             " has no axes, expected an array or a number");
    }
    std::vector<std::size_t> expected = parameter.shape();
    if (length_ && static_cast<std::uint64_t>(*length_) != expected[0]) {
        throw py::value_error(name.text() + " has length " + std::to_string(*length_) +
                              ", expected " + std::to_string(expected[0]) + " (the rows of " +
                              parameter_name + ")");
    }
    expected[0] = size();
    if (values_.shape() == expected) return type;
    throw py::value_error(of_values.text() + " has shape " + text_of(values_.shape()) +
                          ", expected " + text_of(expected) + " (rows of " + parameter_name +
                          ", whose shape is " + text_of(parameter.shape()) + ")");
}

void Rows::check_in_place(const Name& name) const {
    const auto check = [&name](const ArrayView& array, const char* attribute) {
        if (array.has_its_memory()) return;
        throw py::value_error(name.text() + "." + attribute +
                              " was resized, given other memory or made read-only after the Rows "
                              "was made, expected it to stay as it was (make another Rows)");
    };
    check(indices_, "indices");
    check(values_, "values");
}

int Rows::traverse(visitproc visit, void* arg) const {
    if (const int result = indices_.traverse(visit, arg); result != 0) return result;
    return values_.traverse(visit, arg);
}

std::vector<std::int64_t> row_indices(const ArrayView& array, const Name& name,
                                      const ArrayView& parameter,
                                      const std::string& parameter_name) {
    check_integers(array, name);
    std::vector<std::int64_t> indices(array.size());
    const bool is_narrow = array.itemsize() == sizeof(std::int32_t);
    (is_narrow ? copy<std::int32_t> : copy<std::int64_t>)(array, array.data(), 0, indices.data());
    const std::size_t rows = parameter.shape()[0];
    const auto wrong = std::find_if(indices.begin(), indices.end(), [rows](std::int64_t index) {
        return static_cast<std::uint64_t>(index) >= rows;
    });
    if (wrong == indices.end()) return indices;
    const auto element = static_cast<std::size_t>(wrong - indices.begin());
    refuse_index(*wrong, position(array.shape(), element), name, rows, parameter_name);
}

bool is_rows(py::handle object) {
    return PyType_IsSubtype(Py_TYPE(object.ptr()), rows_class) != 0;
}

const Rows& rows_in(py::handle object) {
    return self_of<Rows>(object.ptr());
}

py::object as_rows(const py::object& gradient, const Name& name) {
    if (is_rows(gradient)) return gradient;
    return is_plain_array(gradient) ? py::object() : rows_of_sparse(gradient, name);
}

py::object rows_of_sparse(py::handle gradient, const Name& name) {
    if (sparse_reader == nullptr) return {};
    py::object result = py::handle(sparse_reader)(gradient, name.text());
    if (result.is_none()) return {};
    if (is_rows(result)) return result;
    throw py::type_error("the sparse reader returned " + kind_of(result) + ", expected a Rows");
}

void register_rows(py::module_& module) {
    py::class_<Rows> rows(module, "Rows", py::custom_type_setup(make_collectable<Rows>));
    rows.def(py::init<py::handle, py::handle, std::optional<std::int64_t>>(), py::arg("indices"),
             py::arg("values"), py::arg("length") = py::none())
        .def("__len__", [](py::handle self) { return checked(self).size(); })
        .def_property_readonly("indices",
                               [](py::handle self) { return checked(self).indices().array(); })
        .def_property_readonly("length", [](py::handle self) { return checked(self).length(); })
        .def_property_readonly("values",
                               [](py::handle self) { return checked(self).values().array(); });
    rows_class = reinterpret_cast<PyTypeObject*>(rows.ptr());
    module.def(
        "set_sparse_reader",
        [](const py::object& reader) {
            Py_XDECREF(std::exchange(sparse_reader, py::object(reader).release().ptr()));
        },
        py::arg("reader"));
}

}  // namespace schuss::bindings
