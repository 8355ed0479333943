#include "bindings/tree.hpp"

#include <algorithm>
#include <utility>

#include "bindings/array_view.hpp"

namespace schuss::bindings {
namespace {

bool is_instance_of(py::handle object, const char* abstract_class) {
    const py::object type = py::module_::import("collections.abc").attr(abstract_class);
    return py::isinstance(object, type);
}

bool is_mapping(py::handle object) {
    return PyDict_CheckExact(object.ptr()) || is_instance_of(object, "Mapping");
}

bool is_sequence(py::handle object) {
    if (PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr())) return true;
    return !py::isinstance<py::str>(object) && is_instance_of(object, "Sequence");
}

bool is_container(py::handle object) {
    return is_mapping(object) || is_sequence(object);
}

py::list list_of(py::handle iterable) {
    return py::list(py::reinterpret_borrow<py::object>(iterable));
}

/// Nesting is bounded as it is for Python's own calls: a list that holds itself raises.
class Recursion {
  public:
    Recursion() {
        if (Py_EnterRecursiveCall(" in a structure of arrays") != 0) throw py::error_already_set();
    }
    ~Recursion() { Py_LeaveRecursiveCall(); }
    Recursion(const Recursion&) = delete;
    Recursion& operator=(const Recursion&) = delete;
};

std::string subscript(py::handle key) {
    return "[" + py::repr(key).cast<std::string>() + "]";
}

std::string kind_of(py::handle object) {
    return "a " + py::type::handle_of(object).attr("__name__").cast<std::string>();
}

/// What lies so far ahead in a list is fetched while the objects before it are read.
constexpr std::size_t fetched_ahead = 16;

/// The items of a dict in its own order, as long as their keys are the expected ones.
class InOrder {
  public:
    InOrder(PyObject* dict, const std::vector<py::object>& keys) : dict_(dict), keys_(keys) {}

    bool next() {
        PyObject* key = nullptr;
        return expected_ < keys_.size() && PyDict_Next(dict_, &position_, &key, &value) != 0 &&
               same(key, keys_[expected_++].ptr());
    }
    PyObject* value = nullptr;

  private:
    static bool same(PyObject* a, PyObject* b) {
        return a == b ||
               (PyUnicode_CheckExact(a) && PyUnicode_CheckExact(b) && PyUnicode_Compare(a, b) == 0);
    }

    PyObject* dict_;
    const std::vector<py::object>& keys_;
    std::size_t expected_ = 0;
    py::ssize_t position_ = 0;
};

}  // namespace

Tree::Tree(py::handle structure, const std::string& call, const std::string& argument)
    : argument_(argument) {
    root_ = take_apart(structure, call, argument, "");
    if (leaves_.empty()) {
        throw py::value_error(call + ": " + argument + " holds no array, expected at least one");
    }
}

Tree::Node Tree::take_apart(py::handle structure, const std::string& call,
                            const std::string& argument, std::string path) {
    const Recursion guard;
    Node node;
    node.path = path;
    if (is_array_like(structure)) {
        leaves_.push_back(py::reinterpret_borrow<py::object>(structure));
        paths_.push_back(std::move(path));
        return node;
    }
    Container container;
    const bool replaceable =
        PyDict_Check(structure.ptr()) != 0 || PyList_Check(structure.ptr()) != 0;
    const auto descend = [&](py::handle key, py::object child) {
        std::string child_path = path + subscript(key);
        node.children.push_back(take_apart(child, call, argument, child_path));
        if (!replaceable) return;
        container.values.push_back(std::move(child));
        container.paths.push_back(std::move(child_path));
    };
    if (is_mapping(structure)) {
        node.kind = Node::Kind::mapping;
        for (const py::handle key : list_of(structure)) {
            node.keys.push_back(py::reinterpret_borrow<py::object>(key));
            descend(key, structure[key]);
        }
    } else if (is_sequence(structure)) {
        node.kind = py::isinstance<py::tuple>(structure) ? Node::Kind::tuple : Node::Kind::list;
        const py::list items = list_of(structure);
        for (std::size_t i = 0; i < items.size(); ++i) descend(py::int_(i), items[i]);
    } else {
        throw py::type_error(call + ": " + argument + path + " is " + kind_of(structure) +
                             ", expected an array, or a sequence or mapping of arrays");
    }
    node.leaves_only =
        std::all_of(node.children.begin(), node.children.end(),
                    [](const Node& child) { return child.kind == Node::Kind::leaf; });
    if (replaceable && !container.values.empty()) {
        container.object = py::reinterpret_borrow<py::object>(structure);
        container.keys = node.keys;
        containers_.push_back(std::move(container));
    }
    return node;
}

void Tree::flatten(py::handle other, const std::string& call, const std::string& argument,
                   std::vector<py::object>& out) const {
    flatten(root_, other, call, argument, out);
}

void Tree::flatten(const Node& node, py::handle other, const std::string& call,
                   const std::string& argument, std::vector<py::object>& out) const {
    const auto refuse = [&](const std::string& was, const std::string& expected) {
        throw py::value_error(call + ": " + argument + node.path + " " + was + ", expected " +
                              expected + " (the structure of " + argument_ + node.path + ")");
    };
    if (node.kind == Node::Kind::leaf) {
        if (!is_array_like(other) && is_container(other))
            refuse("is " + kind_of(other), "an array");
        out.push_back(py::reinterpret_borrow<py::object>(other));
        return;
    }
    const bool mapping = node.kind == Node::Kind::mapping;
    if (!(mapping ? is_mapping(other) : is_sequence(other)) || is_array_like(other)) {
        const std::string expected = mapping ? "a mapping" : "a sequence";
        if (is_array_like(other) || is_container(other)) refuse("is " + kind_of(other), expected);
        throw py::type_error(call + ": " + argument + node.path + " is " + kind_of(other) +
                             ", expected " + expected + " of arrays");
    }
    const py::ssize_t length = PyObject_Size(other.ptr());
    if (length < 0) throw py::error_already_set();
    const auto size = static_cast<std::size_t>(length);
    if (!mapping) {
        if (size != node.children.size()) {
            refuse("has length " + std::to_string(size), std::to_string(node.children.size()));
        }
        const auto items = py::reinterpret_steal<py::object>(PySequence_Fast(other.ptr(), ""));
        if (!items) throw py::error_already_set();
        // What is not an array may run code of the user's that changes the list.
        const auto there = [&] {
            return static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
        };
        for (std::size_t i = 0; i < size; ++i) {
            if (i >= there()) refuse("changed its length", "it to stay as it is");
            PyObject* const* const objects = PySequence_Fast_ITEMS(items.ptr());
            if (i + fetched_ahead < there()) __builtin_prefetch(objects[i + fetched_ahead]);
            flatten_child(node, i, objects[i], call, argument, out);
        }
        return;
    }
    if (PyDict_CheckExact(other.ptr()) && size == node.keys.size() &&
        flatten_same_keys(node, other, out)) {
        return;
    }
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
        const py::object& key = node.keys[i];
        py::object child;
        if (PyDict_CheckExact(other.ptr())) {
            child =
                py::reinterpret_borrow<py::object>(PyDict_GetItemWithError(other.ptr(), key.ptr()));
            if (!child && PyErr_Occurred() != nullptr) throw py::error_already_set();
        } else if (other.contains(key)) {
            child = other[key];
        }
        if (!child) refuse("has no key " + py::repr(key).cast<std::string>(), "it");
        flatten(node.children[i], child, call, argument, out);
    }
    if (size == node.keys.size()) return;
    for (const py::handle key : list_of(other)) {
        bool known = false;
        for (const py::object& expected : node.keys) known = known || expected.equal(key);
        if (!known) {
            refuse("has the key " + py::repr(key).cast<std::string>(),
                   "no other keys than those of " + argument_);
        }
    }
}

void Tree::flatten_child(const Node& node, std::size_t child, PyObject* object,
                         const std::string& call, const std::string& argument,
                         std::vector<py::object>& out) const {
    const auto kept = py::reinterpret_borrow<py::object>(object);
    if (node.leaves_only && py::isinstance<py::array>(kept)) {
        out.push_back(kept);
    } else {
        flatten(node.children[child], kept, call, argument, out);
    }
}

bool Tree::flatten_same_keys(const Node& node, py::handle dict,
                             std::vector<py::object>& out) const {
    // Reading a dict in its order needs no search for the keys.
    if (!node.leaves_only) return false;
    const std::size_t before = out.size();
    InOrder in_order(dict.ptr(), node.keys);
    while (in_order.next() && py::isinstance<py::array>(in_order.value)) {
        out.push_back(py::reinterpret_borrow<py::object>(in_order.value));
    }
    if (out.size() - before == node.keys.size()) return true;
    out.resize(before);
    return false;
}

void Tree::check_unchanged(const std::string& call) const {
    for (const Container& container : containers_) {
        PyObject* const object = container.object.ptr();
        const std::vector<py::object>& values = container.values;
        const bool is_dict = PyDict_Check(object) != 0;
        std::size_t same = 0;
        if (is_dict) {
            InOrder in_order(object, container.keys);
            while (in_order.next() && in_order.value == values[same].ptr()) ++same;
        }
        for (; same < values.size(); ++same) {
            PyObject* now = nullptr;
            if (is_dict) {
                now = PyDict_GetItemWithError(object, container.keys[same].ptr());
                if (now == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
            } else if (static_cast<py::ssize_t>(same) < PyList_GET_SIZE(object)) {
                now = PyList_GET_ITEM(object, static_cast<py::ssize_t>(same));
            }
            if (now == values[same].ptr()) continue;
            const std::string name = argument_ + container.paths[same];
            throw py::value_error(call + ": " + name +
                                  " was replaced since the optimizer was made, expected the same " +
                                  "object (to give it new values, write " + name +
                                  "[...] = values)");
        }
    }
}

int Tree::traverse(visitproc visit, void* arg) const {
    for (const Container& container : containers_) {
        Py_VISIT(container.object.ptr());
        for (const py::object& key : container.keys) Py_VISIT(key.ptr());
        for (const py::object& value : container.values) Py_VISIT(value.ptr());
    }
    return 0;
}

py::object Tree::unflatten(const py::list& leaves) const {
    std::size_t next = 0;
    return unflatten(root_, leaves, next);
}

py::object Tree::unflatten(const Node& node, const py::list& leaves, std::size_t& next) const {
    if (node.kind == Node::Kind::leaf) return leaves[next++];
    py::dict mapping;
    py::list sequence;
    for (std::size_t i = 0; i < node.children.size(); ++i) {
        py::object child = unflatten(node.children[i], leaves, next);
        if (node.kind == Node::Kind::mapping) {
            mapping[node.keys[i]] = std::move(child);
        } else {
            sequence.append(std::move(child));
        }
    }
    if (node.kind == Node::Kind::mapping) return mapping;
    if (node.kind == Node::Kind::tuple) return py::tuple(sequence);
    return sequence;
}

}  // namespace schuss::bindings
