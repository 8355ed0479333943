#include <algorithm>
#include <utility>

#include "bindings/arrays.hpp"
#include "bindings/containers.hpp"
#include "bindings/free_threads.hpp"
#include "bindings/tree.hpp"

namespace schuss::bindings {
namespace {

/// Whether two objects are the same elements of the same memory.
bool same_elements(py::handle then, py::handle now, const Name& name) {
    return is_leaf(now) && same_memory(ArrayView(then, name), ArrayView(now, name));
}

/// A list with the items of another.
py::list copied(py::handle list) {
    auto copy = py::reinterpret_steal<py::list>(PySequence_List(list.ptr()));
    if (!copy) throw py::error_already_set();
    return copy;
}

/// Whether a structure could be that of an optimizer's parameters.
bool could_be_parameters(py::handle structure, const Name& name) {
    if (!is_leaf(structure) && !is_container(structure)) return false;
    try {
        const Tree tree(structure, name.call, name.argument);
        return std::all_of(tree.leaves().begin(), tree.leaves().end(), [&](py::handle leaf) {
            const ArrayView array(leaf, name);
            element_type_of(array, name);
            return array.writeable();
        });
    } catch (const py::builtin_exception&) {  // what is refused
        return false;
    }
}

}  // namespace

/// Compares the arrays that a structure returns now with those that it returned before. Containers
/// may be others, as long as the arrays are the same, or are views of the same elements: no update
/// is lost then.
class Tree::Comparison {
  public:
    enum class When { at_once, before_step };

    Comparison(const Tree& tree, const Held& held, const std::string& call, When when)
        : tree_(tree), held_(held), call_(call), when_(when) {}

    void compare() {
        if (held_.groups) {
            compare_groups();
        } else {
            compare(tree_.root_, held_.structure);
        }
    }

  private:
    void compare(const Node& node, py::handle now) {
        if (node.kind == Node::Kind::leaf) {
            compare_leaf(node.first, now);
            return;
        }
        if (node.kind == Node::Kind::none) return check_more(node.path, now);
        if (is_leaf(now) || !node.is_like(now)) refuse(node.path);
        const Node* const maker = maker_;
        if (node.kind == Node::Kind::mapping) {
            compare_mapping(node, now);
        } else if (node.kind == Node::Kind::fields) {
            compare_fields(node, now);
        } else {
            compare_sequence(node, now);
        }
        maker_ = maker;
    }

    /// Compares the params of each group.
    void compare_groups() {
        const std::vector<Node>& nodes = tree_.root_.children;
        static constinit Interned key("params");
        // A copy, since user code may change the list meanwhile.
        const py::list groups = PyList_CheckExact(held_.groups.ptr()) != 0
                                    ? copied(held_.groups)
                                    : iterated(held_.groups, name(""));
        const auto params_of = [](py::handle group) {
            return is_mapping(group) ? value_at(group, key.get(), is_plain_dict(group))
                                     : py::object();
        };
        for (std::size_t i = 0; i < nodes.size(); ++i) {
            const py::object params = i < groups.size() ? params_of(groups[i]) : py::object();
            if (!params) refuse(nodes[i].path);
            compare(nodes[i], params);
        }
        for (std::size_t i = nodes.size(); i < groups.size(); ++i) {
            check_more(tree_.root_.path_of(py::int_(i)), params_of(groups[i]),
                       "add the group with add_group");
        }
    }

    void compare_leaf(std::size_t leaf, py::handle now) {
        const py::handle then = held_.leaves[leaf];
        if (now.is(then)) return;
        const std::string& path = tree_.paths_[leaf];
        if (!same_elements(then, now, name(path))) refuse(path);
    }

    void compare_sequence(const Node& node, py::handle now) {
        const bool plain = is_plain_sequence(now);
        if (!plain) maker_ = &node;
        const py::object items =
            plain ? py::reinterpret_borrow<py::object>(now) : iterated(now, name(node.path));
        // To compare with another object may run user code that changes the list.
        const std::size_t expected = node.children.size();
        for (std::size_t i = node.leaves_only ? same_leaves(node, items) : 0; i < expected; ++i) {
            const py::object item = item_at(items, i);
            if (!item) refuse(node.children[i].path);
            compare(node.children[i], item);
        }
        for (std::size_t i = expected; const py::object item = item_at(items, i); ++i) {
            check_more(node.path_of(py::int_(i)), item);
        }
        if (plain || when_ == When::before_step) return;
        for (std::size_t i = 0; i < expected; ++i) {  // by index, too
            compare(node.children[i], now[py::int_(i)]);
        }
    }

    /// The number of items, of a list or tuple, up to the first one that is not the same object.
    std::size_t same_leaves(const Node& node, py::handle items) const {
        const ObjectLock lock(items);
        PyObject* const* const objects = PySequence_Fast_ITEMS(items.ptr());
        const std::size_t size = std::min(
            node.children.size(), static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr())));
        std::size_t i = 0;
        while (i < size && objects[i] == held_.leaves[node.first + i].ptr()) ++i;
        return i;
    }

    void compare_mapping(const Node& node, py::handle now) {
        const bool plain = is_plain_dict(now);
        if (!plain) maker_ = &node;
        std::size_t i = 0;
        if (plain && node.leaves_only) {
            OrderedValues values(now.ptr(), node.keys);
            while (values.next() && values.value == held_.leaves[node.first + i].ptr()) ++i;
            const auto size = static_cast<std::size_t>(PyDict_GET_SIZE(now.ptr()));
            if (i == size && i == node.keys.size()) return;
        }
        for (; i < node.keys.size(); ++i) {
            const py::object value = value_at(now, node.keys[i], plain);
            if (!value) refuse(node.children[i].path);
            compare(node.children[i], value);
        }
        if (length_of(now) <= node.keys.size()) return;
        for (const py::object& key : other_keys(now, node.keys, name(node.path))) {
            check_more(node.path_of(key), value_at(now, key, plain));
        }
    }

    void compare_fields(const Node& node, py::handle now) {
        maker_ = &node;  // a field may be a property
        for (std::size_t i = 0; i < node.keys.size(); ++i) {
            const py::object value = field_at(now, node.keys[i]);
            if (!value) refuse(node.children[i].path);
            compare(node.children[i], value);
        }
    }

    /// ValueError if what the structure did not have before consists of arrays. Other items may be
    /// added, such as the optimizer itself.
    void check_more(const std::string& path, py::handle value,
                    const std::string& remedy = "make a new optimizer") const {
        const Name name = this->name(path);
        if (!value || !could_be_parameters(value, name)) return;
        throw py::value_error(name.text() +
                              " was added after the optimizer was made, which does not update it, "
                              "expected the same arrays (" +
                              remedy + ")");
    }

    Name name(const std::string& path) const { return {call_, held_.argument + path}; }

    [[noreturn]] void refuse(const std::string& path) const {
        const std::string name = held_.argument + path;
        if (when_ == When::at_once && maker_ != nullptr) {
            const std::string maker = held_.argument + maker_->path;
            const std::string kind = maker_->kind == Node::Kind::mapping ? "dict" : "list";
            throw py::value_error(call_ + ": " + name +
                                  " is a new object at each access, expected " + maker +
                                  " to keep its arrays" +
                                  (maker_->kind == Node::Kind::fields ? "" : remedy(maker, kind)));
        }
        throw py::value_error(call_ + ": " + name +
                              " was replaced since the optimizer was made, expected the same " +
                              "array (to give it new values, write " + name + "[...] = values)");
    }

    const Tree& tree_;
    const Held& held_;
    const std::string& call_;
    When when_;
    const Node* maker_ = nullptr;  // the innermost container that may create its items
};

Tree::Held Tree::hold(py::handle other, const std::string& call,
                      const std::string& argument) const {
    Held held{argument, py::reinterpret_borrow<py::object>(other), {}, {}};
    flatten(other, call, argument, held.leaves);
    check_kept(held, call);
    return held;
}

void Tree::hold_groups(py::object groups, const std::string& call) {
    own_.groups = std::move(groups);
    check_kept(own_, call);
}

void Tree::check_kept(const Held& held, const std::string& call) const {
    Comparison(*this, held, call, Comparison::When::at_once).compare();
}

void Tree::check_unchanged(const Held& held, const std::string& call) const {
    Comparison(*this, held, call, Comparison::When::before_step).compare();
}

}  // namespace schuss::bindings
