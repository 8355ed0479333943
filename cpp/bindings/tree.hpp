// The structure in which parameters come: one array, or sequences and mappings of them, nested.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace schuss::bindings {

namespace py = pybind11;

class Tree {
  public:
    Tree() = default;

    /// Takes the structure apart. TypeError for what is neither array, sequence nor mapping;
    /// ValueError if it holds no array at all.
    Tree(py::handle structure, const std::string& call, const std::string& argument);

    std::size_t size() const { return paths_.size(); }

    /// The arrays, in order; the tree does not keep them.
    std::vector<py::object> take_leaves() { return std::move(leaves_); }

    /// A leaf as messages call it: "grads['W1'][0]" for the argument "grads".
    std::string name(const std::string& argument, std::size_t leaf) const {
        return argument + paths_[leaf];
    }

    /// The leaves of another structure of the same form, appended to out. ValueError if its form is
    /// another.
    void flatten(py::handle other, const std::string& call, const std::string& argument,
                 std::vector<py::object>& out) const;

    /// ValueError if a dict or list of the structure no longer holds the array it held: whoever
    /// replaced it expects the new array to be updated, and it would not be.
    void check_unchanged(const std::string& call) const;

    /// For Python's collector of cycles: a dict that held arrays may later hold the optimizer too.
    int traverse(visitproc visit, void* arg) const;

    /// The leaves in the form of the structure: dicts, lists and tuples.
    py::object unflatten(const py::list& leaves) const;

  private:
    struct Node {
        enum class Kind { leaf, mapping, list, tuple };
        Kind kind = Kind::leaf;
        std::string path;
        std::vector<py::object> keys;  // of a mapping
        std::vector<Node> children;
        bool leaves_only = false;  // whether all children are leaves
    };

    /// A dict or list of the user's, and what stood in it, in its order. Those that are compared in
    /// each step lie together, apart from what only messages need.
    struct Container {
        py::object object;
        std::vector<py::object> keys;  // of a dict
        std::vector<py::object> values;
        std::vector<std::string> paths;
    };

    Node take_apart(py::handle structure, const std::string& call, const std::string& argument,
                    std::string path);
    void flatten(const Node& node, py::handle other, const std::string& call,
                 const std::string& argument, std::vector<py::object>& out) const;
    void flatten_child(const Node& node, std::size_t child, PyObject* object,
                       const std::string& call, const std::string& argument,
                       std::vector<py::object>& out) const;
    bool flatten_same_keys(const Node& node, py::handle dict, std::vector<py::object>& out) const;
    py::object unflatten(const Node& node, const py::list& leaves, std::size_t& next) const;

    std::string argument_;
    std::vector<py::object> leaves_;
    std::vector<std::string> paths_;
    std::vector<Container> containers_;
    Node root_;
};

}  // namespace schuss::bindings
