// The structure in which arrays come: one array, or sequences and mappings of them, nested.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

namespace schuss::bindings {

namespace py = pybind11;

class Tree {
  public:
    /// A structure whose arrays are written from call to call.
    struct Held {
        std::string argument;  // what messages call it
        py::object structure;
        std::vector<py::object> leaves;  // what it gave, in order
        py::object groups;               // of which it lists the params; null if there are none

        /// For Python's collector of cycles.
        int traverse(visitproc visit, void* arg) const;
    };

    Tree() = default;

    /// Takes the structure apart. TypeError for what is neither array, sequence nor mapping;
    /// ValueError if it holds no array at all, or itself.
    Tree(py::handle structure, const std::string& call, const std::string& argument);

    std::size_t size() const { return paths_.size(); }

    /// The arrays of the structure, in order.
    const std::vector<py::object>& leaves() const { return own_.leaves; }

    /// A leaf as messages call it: "grads['W1'][0]" for the argument "grads".
    std::string name(const std::string& argument, std::size_t leaf) const {
        return argument + paths_[leaf];
    }

    /// The leaves of another structure of the same form, appended to out. ValueError if its form is
    /// another.
    void flatten(py::handle other, const std::string& call, const std::string& argument,
                 std::vector<py::object>& out) const;

    /// For a structure that lists what groups have as their params: those are looked at from now
    /// on.
    void hold_groups(py::object groups, const std::string& call);

    /// ValueError if the structure returns new arrays at each access: what is written to those
    /// that it gave would be lost.
    void check_kept(const std::string& call) const { check_kept(own_, call); }

    /// Another structure of the same form whose arrays are written too. ValueError if its form is
    /// another, or if it returns new arrays at each access.
    Held hold(py::handle other, const std::string& call, const std::string& argument) const;

    /// ValueError if the structure no longer gives the arrays that it gave, or gives more: whoever
    /// put another array there expects it to be updated, and it would not be.
    void check_unchanged(const std::string& call) const { check_unchanged(own_, call); }
    void check_unchanged(const Held& held, const std::string& call) const;

    /// For Python's collector of cycles: a dict of arrays may later hold the optimizer too.
    int traverse(visitproc visit, void* arg) const;

    /// The leaves in the form of the structure: dicts, lists and tuples.
    py::object unflatten(const py::list& leaves) const;

  private:
    struct Node {
        enum class Kind { leaf, mapping, list, tuple };
        Kind kind = Kind::leaf;
        bool leaves_only = false;      // whether all children are leaves
        std::size_t first = 0;         // the place of the first leaf
        std::vector<py::object> keys;  // of a mapping
        std::vector<Node> children;
        std::string path;
    };
    class Reader;
    class SecondLook;

    void check_kept(const Held& held, const std::string& call) const;
    void flatten(const Node& node, py::handle other, const std::string& call,
                 const std::string& argument, std::vector<py::object>& out) const;
    void flatten_sequence(const Node& node, py::handle other, const std::string& call,
                          const std::string& argument, std::vector<py::object>& out) const;
    void flatten_mapping(const Node& node, py::handle other, const std::string& call,
                         const std::string& argument, std::vector<py::object>& out) const;
    bool flatten_same_keys(const Node& node, py::handle dict, std::vector<py::object>& out) const;
    [[noreturn]] void refuse(const Node& node, const std::string& call, const std::string& argument,
                             const std::string& was, const std::string& expected) const;
    py::object unflatten(const Node& node, const py::list& leaves, std::size_t& next) const;
    static int traverse(const Node& node, visitproc visit, void* arg);

    std::vector<std::string> paths_;  // of the leaves
    Node root_;
    Held own_;
};

}  // namespace schuss::bindings
