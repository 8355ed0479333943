#include "bindings/containers.hpp"

#include <algorithm>

#include "bindings/rows.hpp"

namespace schuss::bindings {
namespace {

constexpr const char* dataclass_fields = "__dataclass_fields__";
constexpr const char* attrs_fields = "__attrs_attrs__";

bool is_instance_of(py::handle object, const char* abstract_class) {
    return py::isinstance(object, py::module_::import("collections.abc").attr(abstract_class));
}

/// Whether the class of the object inherits these access methods from the built-in class.
bool accessed_as(PyTypeObject& built_in, py::handle object,
                 std::initializer_list<const char*> methods) {
    PyTypeObject* const type = Py_TYPE(object.ptr());
    if (type == &built_in) return true;
    if (PyType_IsSubtype(type, &built_in) == 0) return false;
    const py::handle own(reinterpret_cast<PyObject*>(type));
    const py::handle base(reinterpret_cast<PyObject*>(&built_in));
    return std::all_of(methods.begin(), methods.end(),
                       [&](const char* method) { return own.attr(method).is(base.attr(method)); });
}

/// The function that makes an array or a container of arrays from an object; empty if there is
/// none.
std::string maker_for(py::handle object) {
    if (PyType_Check(object.ptr()) != 0 || py::isinstance<py::str>(object)) return "";
    if (PyFloat_Check(object.ptr()) != 0 || has_attribute(object, "__array__"))
        return "numpy.array";
    if (!is_instance_of(object, "Iterable") || is_instance_of(object, "KeysView")) return "";
    return has_attribute(object, "keys") || is_instance_of(object, "ItemsView") ? "dict" : "list";
}

}  // namespace

bool is_mapping(py::handle object) {
    return PyDict_Check(object.ptr()) != 0 || is_instance_of(object, "Mapping");
}

bool is_sequence(py::handle object) {
    if (PyList_Check(object.ptr()) != 0 || PyTuple_Check(object.ptr()) != 0) return true;
    return !py::isinstance<py::str>(object) && is_instance_of(object, "Sequence");
}

bool has_fields(py::handle object) {
    const auto type = py::type::handle_of(object);
    return has_attribute(type, dataclass_fields) || has_attribute(type, attrs_fields);
}

bool is_container(py::handle object) {
    return is_mapping(object) || is_sequence(object) || has_fields(object);
}

std::vector<py::object> fields_of(py::handle object) {
    const auto type = py::type::handle_of(object);
    const py::object fields = has_attribute(type, dataclass_fields)
                                  ? py::module_::import("dataclasses").attr("fields")(object)
                                  : py::object(type.attr(attrs_fields));
    std::vector<py::object> names;
    for (const py::handle field : fields) {
        const py::object get = field.attr("metadata").attr("get");
        const bool is_static =
            py::bool_(get("static", false)) || !py::bool_(get("pytree_node", true));
        if (!is_static) names.emplace_back(field.attr("name"));
    }
    return names;
}

py::object field_at(py::handle object, py::handle name) {
    auto value = py::reinterpret_steal<py::object>(PyObject_GetAttr(object.ptr(), name.ptr()));
    if (value) return value;
    if (PyErr_ExceptionMatches(PyExc_AttributeError) == 0) throw py::error_already_set();
    PyErr_Clear();
    return value;
}

bool is_leaf(py::handle object) {
    if (PyDict_Check(object.ptr()) != 0) {  // SciPy's DOK arrays inherit from dict
        return PyDict_CheckExact(object.ptr()) == 0 &&
               has_attribute(py::type::handle_of(object), "tocoo");
    }
    return PyType_Check(object.ptr()) == 0 && (is_array_like(object) || is_rows(object));
}

bool is_plain_dict(py::handle object) {
    return accessed_as(PyDict_Type, object, {"__getitem__", "__contains__", "__len__"});
}

bool is_plain_sequence(py::handle object) {
    const auto methods = {"__getitem__", "__iter__", "__len__"};
    return accessed_as(PyList_Type, object, methods) || accessed_as(PyTuple_Type, object, methods);
}

std::size_t length_of(py::handle container) {
    const py::ssize_t length = PyObject_Size(container.ptr());
    if (length < 0) throw py::error_already_set();
    return static_cast<std::size_t>(length);
}

py::list iterated(py::handle container, const Name& name) {
    const std::size_t length = length_of(container);
    py::list items;
    for (const py::handle item : container) {
        if (items.size() == length) {
            throw py::value_error(name.text() + " has length " + std::to_string(length) +
                                  " but yields more items, expected that number");
        }
        items.append(item);
    }
    if (items.size() == length) return items;
    throw py::value_error(name.text() + " has length " + std::to_string(length) + " and gives " +
                          std::to_string(items.size()) + " items, expected the same number");
}

py::object value_at(py::handle mapping, py::handle key, bool plain_dict) {
    if (!plain_dict) return mapping.contains(key) ? py::object(mapping[key]) : py::object();
    return item_of(mapping, key);
}

bool add(const py::set& keys, py::handle key) {
    const std::size_t before = keys.size();
    if (PySet_Add(keys.ptr(), key.ptr()) != 0) throw py::error_already_set();
    return keys.size() > before;
}

std::vector<py::object> other_keys(py::handle mapping, const std::vector<py::object>& keys,
                                   const Name& name) {
    py::set known;
    for (const py::object& key : keys) add(known, key);
    std::vector<py::object> others;
    for (const py::handle key : iterated(mapping, name)) {
        if (add(known, key)) others.push_back(py::reinterpret_borrow<py::object>(key));
    }
    return others;
}

std::string text(py::handle key) {
    return py::repr(key).cast<std::string>();
}

std::string subscript(py::handle key) {
    return "[" + text(key) + "]";
}

std::string attribute(py::handle name) {
    return "." + name.cast<std::string>();
}

std::string kind_of(py::handle object) {
    return "a " + py::type::handle_of(object).attr("__name__").cast<std::string>();
}

std::string remedy(const std::string& name, const std::string& maker) {
    return " (write " + name + " = " + maker + "(" + name + ") first)";
}

[[noreturn]] void refuse_kind(py::handle object, const Name& name, const std::string& expected,
                              std::initializer_list<const char*> makers) {
    const std::string maker = maker_for(object);
    const bool helps = std::find(makers.begin(), makers.end(), maker) != makers.end();
    throw py::type_error(name.text() + " is " + kind_of(object) + ", expected " + expected +
                         (helps ? remedy(name.argument, maker) : ""));
}

}  // namespace schuss::bindings
