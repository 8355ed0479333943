// The structure that holds arrays: one array, or sequences, mappings and fields of arrays, nested.
// None is an empty structure.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/array_view.hpp"

namespace schuss::bindings {

namespace py = pybind11;

class Tree {
  public:
    /// A structure whose arrays every step writes. It is compared before each step.
    struct Held {
        std::string argument;  // its name in messages
        py::object structure;
        std::vector<py::object> leaves;  // the arrays that it had when it was given, in order
        py::object groups;               // if not null, the groups whose params the structure lists

        /// For Python's cycle collector.
        int traverse(visitproc visit, void* arg) const;
    };

    Tree() = default;

    /// Reads a structure. TypeError if a part is neither an array nor a sequence nor a mapping;
    /// ValueError if it has no arrays or contains itself. call, argument: its names in messages.
    Tree(py::handle structure, const std::string& call, const std::string& argument);

    /// Reads a structure whose arrays are to be written. ValueError if it returns new arrays at
    /// each access, since the updates of those would be lost.
    static Tree kept(py::handle structure, const std::string& call, const std::string& argument) {
        Tree tree(structure, call, argument);
        tree.check_kept(tree.own_, call);
        return tree;
    }

    std::size_t size() const { return paths_.size(); }

    /// The arrays of the structure as they were given, in order.
    const std::vector<py::object>& leaves() const { return own_.leaves; }

    /// New arrays of the leaves' memory. TypeError if a leaf does not export its memory.
    py::list arrays() const;

    /// The name of a leaf in messages: "grads['W1'][0]" for the argument "grads".
    std::string name(const std::string& argument, std::size_t leaf) const {
        return argument + paths_[leaf];
    }

    /// The names of the leaves for users: their keys joined by "/", such as "layers/0/W".
    std::vector<std::string> names() const;

    /// Whether the other structure may have None in place of arrays and containers.
    enum class Gaps { refused, allowed };

    /// Appends the leaves of another structure of the same form; None for each leaf that it lacks.
    /// ValueError if the form differs. reference: the name of this structure in that message, if it
    /// is another.
    void flatten(py::handle other, const std::string& call, const std::string& argument,
                 std::vector<py::object>& out, const std::string* reference = nullptr,
                 Gaps gaps = Gaps::refused) const;

    /// New arrays of the memory of another structure's leaves. like: arrays whose shapes and dtypes
    /// the leaves must have, called like_name in messages. gaps: whether leaves may be None.
    py::list flatten_arrays(py::handle other, const std::string& call, const std::string& argument,
                            const std::optional<std::vector<py::array>>& like,
                            const std::string& like_name, bool gaps) const;

    /// The leaves in the form of the structure: dicts, lists, tuples, and shallow copies of objects
    /// with fields.
    py::object unflatten(const py::list& leaves) const;

    /// For a structure that lists the params of groups: compares the groups instead from now on.
    void hold_groups(py::object groups, const std::string& call);

    /// Another structure of the same form whose arrays are written too. ValueError if its form
    /// differs, or if it returns new arrays at each access.
    Held hold(py::handle other, const std::string& call, const std::string& argument) const;

    /// ValueError if the structure returns other arrays than before, or more of them: a user who
    /// replaced an array expects the step to update the new one.
    void check_unchanged(const std::string& call) const { check_unchanged(own_, call); }
    void check_unchanged(const Held& held, const std::string& call) const;

    /// For Python's cycle collector: a dict of arrays may later hold the optimizer too.
    int traverse(visitproc visit, void* arg) const;
    Tree release() noexcept { return std::exchange(*this, Tree()); }

  private:
    struct Node {
        enum class Kind { leaf, mapping, list, tuple, fields, none };
        Kind kind = Kind::leaf;
        bool leaves_only = false;      // whether all children are leaves
        std::size_t first = 0;         // the index of the first leaf
        std::size_t leaves = 1;        // their number
        std::vector<py::object> keys;  // of a mapping, or the names of fields
        std::vector<Node> children;
        std::string path;
        py::object object;  // whose fields they are

        /// Whether an object is a container of this kind.
        bool is_like(py::handle container) const;

        /// The path of an item that the container did not have before.
        std::string path_of(py::handle key) const;

        bool has_keys() const { return kind == Kind::mapping || kind == Kind::fields; }
    };
    class Reader;
    class Flattener;
    class Comparison;

    void check_kept(const Held& held, const std::string& call) const;
    py::object unflatten_node(const Node& node, const py::list& leaves, std::size_t& next) const;
    static py::object with_fields(const py::object& object, const py::dict& fields);
    static void append_names(const Node& node, const std::string& name,
                             std::vector<std::string>& names);
    static int traverse_node(const Node& node, visitproc visit, void* arg);

    std::string call_;                // in messages
    std::vector<std::string> paths_;  // of the leaves
    Node root_;
    Held own_;
};

}  // namespace schuss::bindings
