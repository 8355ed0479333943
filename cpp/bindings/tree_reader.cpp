#include <algorithm>
#include <unordered_set>
#include <utility>

#include "bindings/containers.hpp"
#include "bindings/tree.hpp"

namespace schuss::bindings {
namespace {

/// Limit on the nesting of containers.
constexpr std::size_t max_depth = 250;

/// Limit on the repeated occurrences of containers: n of them nested in each other occur 2**n
/// times.
constexpr std::size_t max_repeats = 100'000;

}  // namespace

/// Builds a tree from a structure.
class Tree::Reader {
  public:
    Reader(Tree& tree, const std::string& call) : tree_(tree), call_(call) {}

    /// again: whether a container around it was read before.
    Node read(py::handle structure, std::string path, bool again, bool in_field = false) {
        if (again && ++repeats_ > max_repeats) {
            throw py::value_error(
                call_ + ": " + tree_.own_.argument +
                " contains the same containers too many times, expected each once");
        }
        Node node;
        node.path = std::move(path);
        node.first = tree_.own_.leaves.size();
        if (is_leaf(structure)) {
            tree_.own_.leaves.push_back(py::reinterpret_borrow<py::object>(structure));
            tree_.paths_.push_back(node.path);
            return node;
        }
        if (structure.is_none() && !node.path.empty()) {
            node.kind = Node::Kind::none;
            node.leaves = 0;
            return node;
        }
        const bool mapping = is_mapping(structure), sequence = is_sequence(structure);
        if (!mapping && !sequence && !has_fields(structure)) refuse(structure, node, in_field);
        enter(structure, node.path);
        again = again || !seen_ids_.insert(structure.ptr()).second;
        seen_.push_back(py::reinterpret_borrow<py::object>(structure));
        if (mapping) {
            read_mapping(structure, node, again);
        } else if (sequence) {
            read_sequence(structure, node, again);
        } else {
            read_fields(structure, node, again);
        }
        parents_.pop_back();
        node.leaves = tree_.own_.leaves.size() - node.first;
        node.leaves_only =
            std::all_of(node.children.begin(), node.children.end(),
                        [](const Node& child) { return child.kind == Node::Kind::leaf; });
        return node;
    }

  private:
    Name name(const std::string& path) const { return {call_, tree_.own_.argument + path}; }

    [[noreturn]] void refuse(py::handle structure, const Node& node, bool in_field) const {
        const std::string expected = "an array, or a sequence, mapping or dataclass of arrays";
        std::string remedy;
        if (structure.is_none()) remedy = " (a step changes arrays in place and returns None)";
        if (PyGen_Check(structure.ptr()) != 0) {
            const std::string whole = tree_.own_.argument + node.path;
            remedy = " (write " + whole + " = list(" + whole +
                     ") first; for a module of PyTorch, there is schuss.torch)";
        }
        if (in_field) remedy = " (metadata={'static': True} of the field leaves it out)";
        if (remedy.empty()) {
            refuse_kind(structure, name(node.path), expected, {"numpy.array", "dict", "list"});
        }
        throw py::type_error(name(node.path).text() + " is " + kind_of(structure) + ", expected " +
                             expected + remedy);
    }

    void enter(py::handle structure, const std::string& path) {
        for (const auto& [object, its_path] : parents_) {
            if (object != structure.ptr()) continue;
            throw py::value_error(name(path).text() + " is " + tree_.own_.argument + its_path +
                                  " itself, expected a structure that does not hold itself");
        }
        if (parents_.size() == max_depth) {
            throw py::value_error(call_ + ": " + tree_.own_.argument + " is nested more than " +
                                  std::to_string(max_depth) + " deep, expected less");
        }
        parents_.emplace_back(structure.ptr(), path);
    }

    void read_sequence(py::handle structure, Node& node, bool again) {
        const bool tuple = py::isinstance<py::tuple>(structure);
        node.kind = tuple ? Node::Kind::tuple : Node::Kind::list;
        // A copy, since user code may change the list meanwhile.
        const py::list items = iterated(structure, name(node.path));
        for (std::size_t i = 0; i < items.size(); ++i) {
            node.children.push_back(read(items[i], node.path + subscript(py::int_(i)), again));
        }
    }

    void read_mapping(py::handle structure, Node& node, bool again) {
        node.kind = Node::Kind::mapping;
        py::set keys;
        for (const py::handle key : iterated(structure, name(node.path))) {
            check_key(key, keys, node.path);
            const py::object value = value_of(structure, key, node.path);
            node.keys.push_back(py::reinterpret_borrow<py::object>(key));
            node.children.push_back(read(value, node.path + subscript(key), again));
        }
    }

    void read_fields(py::handle structure, Node& node, bool again) {
        node.kind = Node::Kind::fields;
        node.object = py::reinterpret_borrow<py::object>(structure);
        node.keys = fields_of(structure);
        for (const py::object& key : node.keys) {
            const py::object value = field_at(structure, key);
            const std::string path = node.path + attribute(key);
            if (!value)
                throw py::value_error(name(path).text() + " has no value, expected an array");
            node.children.push_back(read(value, path, again, true));
        }
    }

    /// Raises unless the key can be added to a dict with the keys before it.
    void check_key(py::handle key, const py::set& before, const std::string& path) const {
        try {
            if (add(before, key)) return;
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_TypeError)) throw;
            throw py::type_error(name(path).text() + " has the key " + text(key) +
                                 ", expected keys that can be hashed");
        }
        throw py::value_error(name(path).text() + " has the key " + text(key) +
                              " twice, expected each once");
    }

    py::object value_of(py::handle structure, py::handle key, const std::string& path) const {
        try {
            return structure[key];
        } catch (py::error_already_set& error) {
            if (!error.matches(PyExc_KeyError)) throw;
            throw py::value_error(name(path).text() + " gives the key " + text(key) +
                                  " but has no value for it, expected an array");
        }
    }

    Tree& tree_;
    const std::string& call_;
    std::vector<std::pair<PyObject*, std::string>> parents_;  // the containers being read
    std::vector<py::object> seen_;                            // kept alive, so that ids are unique
    std::unordered_set<PyObject*> seen_ids_;
    std::size_t repeats_ = 0;
};

Tree::Tree(py::handle structure, const std::string& call, const std::string& argument)
    : call_(call), own_{argument, py::reinterpret_borrow<py::object>(structure), {}, {}} {
    root_ = Reader(*this, call).read(structure, "", false);
    if (own_.leaves.empty()) {
        throw py::value_error(call + ": " + argument +
                              " contains no arrays, expected at least one");
    }
}

}  // namespace schuss::bindings
