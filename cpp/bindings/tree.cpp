#include "bindings/tree.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <utility>

#include "bindings/arrays.hpp"
#include "bindings/collectable.hpp"
#include "bindings/containers.hpp"
#include "bindings/free_threads.hpp"
#include "bindings/register.hpp"
#include "bindings/rows.hpp"

namespace schuss::bindings {
namespace {

/// List items are prefetched this many positions ahead.
constexpr std::size_t prefetch_distance = 16;

/// A message about a missing key shows this many of the keys that are there.
constexpr std::size_t most_keys_shown = 4;

/// Prefetches an item of a list or tuple, if there is one.
void prefetch_item(py::handle items, std::size_t i) {
    const ObjectLock lock(items);
    if (i >= static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr()))) return;
    __builtin_prefetch(PySequence_Fast_ITEMS(items.ptr())[i]);
}

/// Whether an object is a leaf, which is known without a call into Python. The usual arrays first.
inline bool is_usual_leaf(py::handle object) {
    return is_plain_array(object) || py::isinstance<py::array>(object) || is_rows(object);
}

/// The keys that a message shows: " (it has 'dW1', 'db1')".
std::string shown(const std::vector<py::object>& keys) {
    std::string result;
    for (std::size_t i = 0; i < std::min(keys.size(), most_keys_shown); ++i) {
        result += (i == 0 ? " (it has " : ", ") + text(keys[i]);
    }
    if (keys.size() > most_keys_shown) result += ", ...";
    return keys.empty() ? "" : result + ")";
}

}  // namespace

bool Tree::Node::is_like(py::handle container) const {
    switch (kind) {
        case Kind::mapping:
            return is_mapping(container);
        case Kind::fields:
            return has_fields(container);
        case Kind::none:
            return container.is_none();
        default:
            return is_sequence(container);
    }
}

std::string Tree::Node::path_of(py::handle key) const {
    return path + (kind == Kind::fields ? attribute(key) : subscript(key));
}

/// Collects the leaves of another structure of the same form.
class Tree::Flattener {
  public:
    Flattener(const std::string& call, const std::string& argument, const std::string& reference,
              std::vector<py::object>& out, Gaps gaps)
        : call_(call), argument_(argument), reference_(reference), out_(out), gaps_(gaps) {}

    void flatten(const Node& node, py::handle other) {
        if (node.kind == Node::Kind::leaf) {
            if (!is_usual_leaf(other) && !other.is_none() && !is_leaf(other) &&
                is_container(other)) {
                refuse(node, "is " + kind_of(other), "an array");
            }
            out_.push_back(py::reinterpret_borrow<py::object>(other));
            return;
        }
        if (gaps_ == Gaps::allowed && other.is_none() && !node.path.empty()) {
            out_.insert(out_.end(), node.leaves, py::none());
            return;
        }
        if (is_leaf(other) || !node.is_like(other)) refuse_container(node, other);
        if (node.kind == Node::Kind::mapping) {
            flatten_mapping(node, other);
        } else if (node.kind == Node::Kind::fields) {
            flatten_fields(node, other);
        } else if (node.kind != Node::Kind::none) {
            flatten_sequence(node, other);
        }
    }

  private:
    [[noreturn]] void refuse_container(const Node& node, py::handle other) const {
        const bool mapping = node.kind == Node::Kind::mapping;
        std::string expected = mapping ? "a mapping" : "a sequence";
        if (node.kind == Node::Kind::none) expected = "None";
        if (node.kind == Node::Kind::fields) expected = kind_of(node.object);
        if (is_leaf(other) || is_container(other) || node.kind == Node::Kind::none) {
            refuse(node, "is " + kind_of(other), expected);
        }
        refuse_kind(other, name(node), expected + " of arrays", {mapping ? "dict" : "list"});
    }

    void flatten_sequence(const Node& node, py::handle other) {
        const py::object items = is_plain_sequence(other)
                                     ? py::reinterpret_borrow<py::object>(other)
                                     : iterated(other, name(node));
        const auto size = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
        if (size != node.children.size()) {
            refuse(node, "has length " + std::to_string(size),
                   std::to_string(node.children.size()));
        }
        // An item that is not an array may run user code that changes the list.
        for (std::size_t i = 0; i < size; ++i) {
            prefetch_item(items, i + prefetch_distance);
            py::object item = item_at(items, i);
            if (!item) refuse(node, "changed its length", "it to stay as it is");
            if (node.leaves_only && is_usual_leaf(item)) {
                out_.push_back(std::move(item));
            } else {
                flatten(node.children[i], item);
            }
        }
    }

    void flatten_mapping(const Node& node, py::handle other) {
        const bool plain = is_plain_dict(other);
        const std::size_t size = length_of(other);
        if (plain && size == node.keys.size() && flatten_same_keys(node, other)) return;
        for (std::size_t i = 0; i < node.keys.size(); ++i) {
            const py::object child = value_at(other, node.keys[i], plain);
            if (!child) {
                const auto others = other_keys(other, node.keys, name(node));
                refuse(node, "has no key " + text(node.keys[i]) + shown(others), "it");
            }
            flatten(node.children[i], child);
        }
        if (size <= node.keys.size()) return;
        for (const py::object& key : other_keys(other, node.keys, name(node))) {
            refuse(node, "has the key " + text(key), "no other keys than those of " + reference_);
        }
    }

    void flatten_fields(const Node& node, py::handle other) {
        for (std::size_t i = 0; i < node.keys.size(); ++i) {
            const py::object child = field_at(other, node.keys[i]);
            if (!child) refuse(node, "has no field " + text(node.keys[i]), "it");
            flatten(node.children[i], child);
        }
        if (py::type::handle_of(other).is(py::type::handle_of(node.object))) return;
        for (const py::object& key : fields_of(other)) {
            const bool known =
                std::any_of(node.keys.begin(), node.keys.end(),
                            [&key](const py::object& own) { return own.equal(key); });
            if (!known) refuse(node, "has the field " + text(key), "no other fields");
        }
    }

    /// Reads a dict in its order, without a search for the keys. False if that is not possible.
    bool flatten_same_keys(const Node& node, py::handle dict) {
        if (!node.leaves_only) return false;
        const std::size_t before = out_.size();
        OrderedValues values(dict.ptr(), node.keys);
        while (values.next() && is_usual_leaf(values.value)) {
            out_.push_back(py::reinterpret_borrow<py::object>(values.value));
        }
        if (out_.size() - before == node.keys.size()) return true;
        out_.resize(before);
        return false;
    }

    Name name(const Node& node) const { return {call_, argument_ + node.path}; }

    [[noreturn]] void refuse(const Node& node, const std::string& actual,
                             const std::string& expected) const {
        throw py::value_error(name(node).text() + " " + actual + ", expected " + expected +
                              " (the structure of " + reference_ + node.path + ")");
    }

    const std::string &call_, &argument_, &reference_;
    std::vector<py::object>& out_;
    Gaps gaps_;
};

py::list Tree::arrays() const {
    py::list result;
    for (std::size_t i = 0; i < size(); ++i) {
        result.append(ArrayView(own_.leaves[i], {call_, name(own_.argument, i)}).plain());
    }
    return result;
}

std::vector<std::string> Tree::names() const {
    std::vector<std::string> names;
    append_names(root_, "", names);
    return names;
}

void Tree::append_names(const Node& node, const std::string& name,
                        std::vector<std::string>& names) {
    if (node.kind == Node::Kind::leaf) names.push_back(name);
    for (std::size_t i = 0; i < node.children.size(); ++i) {
        const std::string key =
            node.has_keys() ? py::str(node.keys[i]).cast<std::string>() : std::to_string(i);
        append_names(node.children[i], name.empty() ? key : name + "/" + key, names);
    }
}

void Tree::flatten(py::handle other, const std::string& call, const std::string& argument,
                   std::vector<py::object>& out, const std::string* reference, Gaps gaps) const {
    Flattener(call, argument, reference == nullptr ? own_.argument : *reference, out, gaps)
        .flatten(root_, other);
}

py::list Tree::flatten_arrays(py::handle other, const std::string& call,
                              const std::string& argument,
                              const std::optional<std::vector<py::array>>& like,
                              const std::string& like_name, bool gaps) const {
    std::vector<py::object> leaves;
    flatten(other, call, argument, leaves, nullptr, gaps ? Gaps::allowed : Gaps::refused);
    py::list result;
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        if (gaps && leaves[i].is_none()) {
            result.append(py::none());
            continue;
        }
        const Name array_name{call, name(argument, i)};
        const ArrayView array(leaves[i], array_name);
        if (like) {
            const Name other_name{call, name(like_name, i)};
            check_like(array, array_name, ArrayView(like->at(i), other_name), other_name.argument);
        }
        result.append(array.plain());
    }
    return result;
}

py::object Tree::unflatten(const py::list& leaves) const {
    std::size_t next = 0;
    return unflatten_node(root_, leaves, next);
}

py::object Tree::unflatten_node(const Node& node, const py::list& leaves, std::size_t& next) const {
    if (node.kind == Node::Kind::leaf) return leaves[next++];
    if (node.kind == Node::Kind::none) return py::none();
    py::dict mapping;
    py::list sequence;
    for (std::size_t i = 0; i < node.children.size(); ++i) {
        py::object child = unflatten_node(node.children[i], leaves, next);
        if (node.has_keys()) {
            mapping[node.keys[i]] = std::move(child);
        } else {
            sequence.append(std::move(child));
        }
    }
    if (node.kind == Node::Kind::mapping) return mapping;
    if (node.kind == Node::Kind::fields) return with_fields(node.object, mapping);
    if (node.kind == Node::Kind::tuple) return py::tuple(sequence);
    return sequence;
}

/// A shallow copy of an object with other values of its fields.
py::object Tree::with_fields(const py::object& object, const py::dict& fields) {
    py::object copy = py::module_::import("copy").attr("copy")(object);
    for (const auto& [name, value] : fields) {  // also if the class is frozen
        if (PyObject_GenericSetAttr(copy.ptr(), name.ptr(), value.ptr()) != 0) {
            throw py::error_already_set();
        }
    }
    return copy;
}

int Tree::Held::traverse(visitproc visit, void* arg) const {
    Py_VISIT(structure.ptr());
    Py_VISIT(groups.ptr());
    for (const py::object& leaf : leaves) Py_VISIT(leaf.ptr());
    return 0;
}

int Tree::traverse(visitproc visit, void* arg) const {
    if (const int result = own_.traverse(visit, arg); result != 0) return result;
    return traverse_node(root_, visit, arg);
}

int Tree::traverse_node(const Node& node, visitproc visit, void* arg) {
    for (const py::object& key : node.keys) Py_VISIT(key.ptr());
    Py_VISIT(node.object.ptr());
    for (const Node& child : node.children) {
        if (const int result = traverse_node(child, visit, arg); result != 0) return result;
    }
    return 0;
}

void register_tree(py::module_& module) {
    py::class_<Tree>(module, "Tree", py::custom_type_setup(make_collectable<Tree>))
        .def(py::init([](py::handle structure, const std::string& call, const std::string& argument,
                         bool kept) {
                 return kept ? Tree::kept(structure, call, argument)
                             : Tree(structure, call, argument);
             }),
             py::arg("structure"), py::arg("call"), py::arg("argument"), py::arg("kept") = false)
        .def_property_readonly("leaves", &Tree::leaves)
        .def_property_readonly("arrays", &Tree::arrays)
        .def_property_readonly("names", &Tree::names)
        .def(
            "flatten",
            [](const Tree& tree, py::handle other, const std::string& call,
               const std::string& argument) {
                std::vector<py::object> leaves;
                tree.flatten(other, call, argument, leaves, nullptr, Tree::Gaps::allowed);
                return leaves;
            },
            py::arg("other"), py::arg("call"), py::arg("argument"))
        .def("flatten_arrays", &Tree::flatten_arrays, py::arg("other"), py::arg("call"),
             py::arg("argument"), py::arg("like") = py::none(), py::arg("like_name") = "",
             py::arg("gaps") = false)
        .def("unflatten", &Tree::unflatten, py::arg("leaves"));
}

}  // namespace schuss::bindings
