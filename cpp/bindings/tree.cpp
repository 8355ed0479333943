#include "bindings/tree.hpp"

#include <algorithm>
#include <initializer_list>
#include <unordered_set>
#include <utility>

#include "bindings/arrays.hpp"

namespace schuss::bindings {
namespace {

/// How deep containers may be nested.
constexpr std::size_t most_levels = 250;

/// How many places containers may have that come more than once: nested in each other, n of them
/// have 2**n places.
constexpr std::size_t most_places_again = 100'000;

/// What lies so far ahead in a list is fetched while the objects before it are read.
constexpr std::size_t fetched_ahead = 16;

bool is_instance_of(py::handle object, const char* abstract_class) {
    return py::isinstance(object, py::module_::import("collections.abc").attr(abstract_class));
}

bool is_mapping(py::handle object) {
    return PyDict_Check(object.ptr()) != 0 || is_instance_of(object, "Mapping");
}

bool is_sequence(py::handle object) {
    if (PyList_Check(object.ptr()) != 0 || PyTuple_Check(object.ptr()) != 0) return true;
    return !py::isinstance<py::str>(object) && is_instance_of(object, "Sequence");
}

bool is_container(py::handle object) {
    return is_mapping(object) || is_sequence(object);
}

/// Whether the object stands for one array. A dict whose keys can be read as attributes may seem to
/// any attribute, `__dlpack__` too; a class has those of its instances.
bool is_leaf(py::handle object) {
    return PyDict_Check(object.ptr()) == 0 && PyType_Check(object.ptr()) == 0 &&
           is_array_like(object);
}

/// Whether access to the object is that of the built-in class: what it holds is then what its user
/// sees, and can be read without a call.
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

/// What the container gives as it is iterated over. ValueError if that is not as much as its length
/// says, which it might be without an end.
py::list iterated(py::handle container, const Name& name) {
    const std::size_t length = length_of(container);
    py::list items;
    for (const py::handle item : container) {
        if (items.size() == length) {
            throw py::value_error(name.text() + " has length " + std::to_string(length) +
                                  " and gives more items, expected as many");
        }
        items.append(item);
    }
    if (items.size() == length) return items;
    throw py::value_error(name.text() + " has length " + std::to_string(length) + " and gives " +
                          std::to_string(items.size()) + " items, expected as many");
}

/// What a mapping has at a key; null if it has no such key. Asked for first, as access may make it.
py::object value_at(py::handle mapping, py::handle key, bool plain_dict) {
    if (!plain_dict) return mapping.contains(key) ? py::object(mapping[key]) : py::object();
    PyObject* const value = PyDict_GetItemWithError(mapping.ptr(), key.ptr());
    if (value == nullptr && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return py::reinterpret_borrow<py::object>(value);
}

/// Adds a key to a set; false if the set has it. The set of pybind11 leaves an error unraised.
bool add(const py::set& keys, py::handle key) {
    const std::size_t before = keys.size();
    if (PySet_Add(keys.ptr(), key.ptr()) != 0) throw py::error_already_set();
    return keys.size() > before;
}

/// The keys of a mapping that are none of these.
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

std::string kind_of(py::handle object) {
    return "a " + py::type::handle_of(object).attr("__name__").cast<std::string>();
}

/// The function that makes an array or a container of arrays of an object; empty if nobody knows.
std::string maker_for(py::handle object) {
    if (PyType_Check(object.ptr()) != 0 || py::isinstance<py::str>(object)) return "";
    if (PyFloat_Check(object.ptr()) != 0 || has_attribute(object, "__array__"))
        return "numpy.array";
    if (has_attribute(object, "__dataclass_fields__")) return "vars";
    if (!is_instance_of(object, "Iterable") || is_instance_of(object, "KeysView")) return "";
    return has_attribute(object, "keys") || is_instance_of(object, "ItemsView") ? "dict" : "list";
}

std::string remedy(const std::string& name, const std::string& maker) {
    return " (write " + name + " = " + maker + "(" + name + ") first)";
}

/// Refuses what is neither array nor container. makers: the functions that make what is expected.
[[noreturn]] void refuse_kind(py::handle object, const Name& name, const std::string& expected,
                              std::initializer_list<const char*> makers) {
    const std::string maker = maker_for(object);
    const bool helps = std::find(makers.begin(), makers.end(), maker) != makers.end();
    throw py::type_error(name.text() + " is " + kind_of(object) + ", expected " + expected +
                         (helps ? remedy(name.argument, maker) : ""));
}

/// Whether two objects show the same elements of the same memory.
bool show_the_same(py::handle then, py::handle now, const Name& name) {
    return is_leaf(now) && same_memory(ArrayView(then, name), ArrayView(now, name));
}

/// Whether a structure could be that of an optimizer's parameters.
bool could_be_parameters(py::handle structure, const Name& name) {
    if (!is_leaf(structure) && !is_container(structure)) return false;
    try {
        const Tree tree(structure, name.call, name.argument);
        return std::all_of(tree.leaves().begin(), tree.leaves().end(), [&](py::handle leaf) {
            const ArrayView array(leaf, name);
            number_of(array, name);
            return array.writeable();
        });
    } catch (const py::builtin_exception&) {  // what is refused
        return false;
    }
}

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

/// Takes a structure apart.
class Tree::Reader {
  public:
    Reader(Tree& tree, const std::string& call) : tree_(tree), call_(call) {}

    /// again: whether it stands in a container that was met before.
    Node read(py::handle structure, std::string path, bool again) {
        if (again && ++places_again_ > most_places_again) {
            throw py::value_error(call_ + ": " + tree_.own_.argument +
                                  " holds the same containers too often, expected each once");
        }
        Node node;
        node.path = std::move(path);
        node.first = tree_.own_.leaves.size();
        if (is_leaf(structure)) {
            tree_.own_.leaves.push_back(py::reinterpret_borrow<py::object>(structure));
            tree_.paths_.push_back(node.path);
            return node;
        }
        const bool mapping = is_mapping(structure);
        if (!mapping && !is_sequence(structure)) {
            refuse_kind(structure, name(node.path), "an array, or a sequence or mapping of arrays",
                        {"numpy.array", "vars", "dict", "list"});
        }
        enter(structure, node.path);
        again = again || !ids_met_.insert(structure.ptr()).second;
        met_.push_back(py::reinterpret_borrow<py::object>(structure));
        if (mapping) {
            read_mapping(structure, node, again);
        } else {
            read_sequence(structure, node, again);
        }
        around_.pop_back();
        node.leaves_only =
            std::all_of(node.children.begin(), node.children.end(),
                        [](const Node& child) { return child.kind == Node::Kind::leaf; });
        return node;
    }

  private:
    Name name(const std::string& path) const { return {call_, tree_.own_.argument + path}; }

    void enter(py::handle structure, const std::string& path) {
        for (const auto& [object, its_path] : around_) {
            if (object != structure.ptr()) continue;
            throw py::value_error(name(path).text() + " is " + tree_.own_.argument + its_path +
                                  " itself, expected a structure that does not hold itself");
        }
        if (around_.size() == most_levels) {
            throw py::value_error(call_ + ": " + tree_.own_.argument + " is nested more than " +
                                  std::to_string(most_levels) + " deep, expected less");
        }
        around_.emplace_back(structure.ptr(), path);
    }

    void read_sequence(py::handle structure, Node& node, bool again) {
        const bool tuple = py::isinstance<py::tuple>(structure);
        node.kind = tuple ? Node::Kind::tuple : Node::Kind::list;
        // A list of its own: what stands in the other may change meanwhile.
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

    /// Raises unless the key goes into a dict, beside those before.
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
                                  " and has nothing there, expected an array");
        }
    }

    Tree& tree_;
    const std::string& call_;
    std::vector<std::pair<PyObject*, std::string>> around_;  // the containers under way
    std::vector<py::object> met_;                            // which keeps their ids theirs
    std::unordered_set<PyObject*> ids_met_;
    std::size_t places_again_ = 0;
};

/// Compares what a structure gives now with what it gave. Containers may be others, as long as the
/// arrays are the same, or views that show the same elements: no step is lost then.
class Tree::SecondLook {
  public:
    enum class When { at_once, later };

    SecondLook(const Tree& tree, const Held& held, const std::string& call, When when)
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
        const bool mapping = node.kind == Node::Kind::mapping;
        if (is_leaf(now) || !(mapping ? is_mapping(now) : is_sequence(now))) refuse(node.path);
        const Node* const maker = maker_;
        if (mapping) {
            compare_mapping(node, now);
        } else {
            compare_sequence(node, now);
        }
        maker_ = maker;
    }

    /// What groups have as their params, each in the place of its group.
    void compare_groups() {
        const std::vector<Node>& nodes = tree_.root_.children;
        const py::list groups = iterated(held_.groups, name(""));
        const py::str key("params");
        const auto params_of = [&key](py::handle group) {
            return is_mapping(group) ? value_at(group, key, is_plain_dict(group)) : py::object();
        };
        for (std::size_t i = 0; i < nodes.size(); ++i) {
            const py::object params = i < groups.size() ? params_of(groups[i]) : py::object();
            if (!params) refuse(nodes[i].path);
            compare(nodes[i], params);
        }
        for (std::size_t i = nodes.size(); i < groups.size(); ++i) {
            check_more(tree_.root_, py::int_(i), params_of(groups[i]));
        }
    }

    void compare_leaf(std::size_t leaf, py::handle now) {
        const py::handle then = held_.leaves[leaf];
        if (now.is(then)) return;
        const std::string& path = tree_.paths_[leaf];
        if (!show_the_same(then, now, name(path))) refuse(path);
    }

    void compare_sequence(const Node& node, py::handle now) {
        const bool plain = is_plain_sequence(now);
        if (!plain) maker_ = &node;
        const py::object items =
            plain ? py::reinterpret_borrow<py::object>(now) : iterated(now, name(node.path));
        // To compare an array that is another object may run code that changes the list.
        const auto there = [&] {
            return static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
        };
        const std::size_t expected = node.children.size();
        for (std::size_t i = 0; i < expected; ++i) {
            if (i >= there()) refuse(node.children[i].path);
            PyObject* const item = PySequence_Fast_ITEMS(items.ptr())[i];
            if (node.leaves_only && item == held_.leaves[node.first + i].ptr()) continue;
            compare(node.children[i], py::reinterpret_borrow<py::object>(item));
        }
        for (std::size_t i = expected; i < there(); ++i) {
            check_more(node, py::int_(i),
                       py::reinterpret_borrow<py::object>(PySequence_Fast_ITEMS(items.ptr())[i]));
        }
        if (plain || when_ == When::later) return;
        for (std::size_t i = 0; i < expected; ++i) {  // by its place, too
            compare(node.children[i], now[py::int_(i)]);
        }
    }

    void compare_mapping(const Node& node, py::handle now) {
        const bool plain = is_plain_dict(now);
        if (!plain) maker_ = &node;
        std::size_t i = 0;
        if (plain && node.leaves_only) {
            InOrder in_order(now.ptr(), node.keys);
            while (in_order.next() && in_order.value == held_.leaves[node.first + i].ptr()) ++i;
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
            check_more(node, key, value_at(now, key, plain));
        }
    }

    /// ValueError if what a container did not have before is arrays too. Anything else may have
    /// come: the optimizer itself, for one.
    void check_more(const Node& node, py::handle key, const py::object& value) const {
        const Name name = this->name(node.path + subscript(key));
        if (!value || !could_be_parameters(value, name)) return;
        throw py::value_error(name.text() +
                              " came after the optimizer was made, which does not update it, "
                              "expected the same arrays (make a new optimizer)");
    }

    Name name(const std::string& path) const { return {call_, held_.argument + path}; }

    [[noreturn]] void refuse(const std::string& path) const {
        const std::string name = held_.argument + path;
        if (when_ == When::at_once && maker_ != nullptr) {
            const std::string maker = held_.argument + maker_->path;
            const std::string kind = maker_->kind == Node::Kind::mapping ? "dict" : "list";
            throw py::value_error(call_ + ": " + name +
                                  " is a new object at each access, expected " + maker +
                                  " to keep its arrays" + remedy(maker, kind));
        }
        throw py::value_error(call_ + ": " + name +
                              " was replaced since the optimizer was made, expected the same " +
                              "array (to give it new values, write " + name + "[...] = values)");
    }

    const Tree& tree_;
    const Held& held_;
    const std::string& call_;
    When when_;
    const Node* maker_ = nullptr;  // the innermost container around that may make its items anew
};

Tree::Tree(py::handle structure, const std::string& call, const std::string& argument)
    : own_{argument, py::reinterpret_borrow<py::object>(structure), {}, {}} {
    root_ = Reader(*this, call).read(structure, "", false);
    if (own_.leaves.empty()) {
        throw py::value_error(call + ": " + argument + " holds no array, expected at least one");
    }
}

void Tree::refuse(const Node& node, const std::string& call, const std::string& argument,
                  const std::string& was, const std::string& expected) const {
    throw py::value_error(call + ": " + argument + node.path + " " + was + ", expected " +
                          expected + " (the structure of " + own_.argument + node.path + ")");
}

void Tree::flatten(py::handle other, const std::string& call, const std::string& argument,
                   std::vector<py::object>& out) const {
    flatten(root_, other, call, argument, out);
}

void Tree::flatten(const Node& node, py::handle other, const std::string& call,
                   const std::string& argument, std::vector<py::object>& out) const {
    if (node.kind == Node::Kind::leaf) {
        if (!is_leaf(other) && is_container(other)) {
            refuse(node, call, argument, "is " + kind_of(other), "an array");
        }
        out.push_back(py::reinterpret_borrow<py::object>(other));
        return;
    }
    const bool mapping = node.kind == Node::Kind::mapping;
    if (is_leaf(other) || !(mapping ? is_mapping(other) : is_sequence(other))) {
        if (is_leaf(other) || is_container(other)) {
            refuse(node, call, argument, "is " + kind_of(other),
                   mapping ? "a mapping" : "a sequence");
        }
        const Name name{call, argument + node.path};
        if (mapping) refuse_kind(other, name, "a mapping of arrays", {"dict", "vars"});
        refuse_kind(other, name, "a sequence of arrays", {"list"});
    }
    if (mapping) {
        flatten_mapping(node, other, call, argument, out);
    } else {
        flatten_sequence(node, other, call, argument, out);
    }
}

void Tree::flatten_sequence(const Node& node, py::handle other, const std::string& call,
                            const std::string& argument, std::vector<py::object>& out) const {
    const py::object items = is_plain_sequence(other)
                                 ? py::reinterpret_borrow<py::object>(other)
                                 : iterated(other, {call, argument + node.path});
    // What is not an array may run code of the user's that changes the list.
    const auto there = [&] {
        return static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
    };
    const std::size_t size = there();
    if (size != node.children.size()) {
        refuse(node, call, argument, "has length " + std::to_string(size),
               std::to_string(node.children.size()));
    }
    for (std::size_t i = 0; i < size; ++i) {
        if (i >= there()) refuse(node, call, argument, "changed its length", "it to stay as it is");
        PyObject* const* const objects = PySequence_Fast_ITEMS(items.ptr());
        if (i + fetched_ahead < there()) __builtin_prefetch(objects[i + fetched_ahead]);
        auto kept = py::reinterpret_borrow<py::object>(objects[i]);
        if (node.leaves_only && py::isinstance<py::array>(kept)) {
            out.push_back(std::move(kept));
        } else {
            flatten(node.children[i], kept, call, argument, out);
        }
    }
}

void Tree::flatten_mapping(const Node& node, py::handle other, const std::string& call,
                           const std::string& argument, std::vector<py::object>& out) const {
    const bool plain = is_plain_dict(other);
    const std::size_t size = length_of(other);
    if (plain && size == node.keys.size() && flatten_same_keys(node, other, out)) return;
    for (std::size_t i = 0; i < node.keys.size(); ++i) {
        const py::object child = value_at(other, node.keys[i], plain);
        if (!child) refuse(node, call, argument, "has no key " + text(node.keys[i]), "it");
        flatten(node.children[i], child, call, argument, out);
    }
    if (size <= node.keys.size()) return;
    for (const py::object& key : other_keys(other, node.keys, {call, argument + node.path})) {
        refuse(node, call, argument, "has the key " + text(key),
               "no other keys than those of " + own_.argument);
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

Tree::Held Tree::hold(py::handle other, const std::string& call,
                      const std::string& argument) const {
    Held held{argument, py::reinterpret_borrow<py::object>(other), {}, {}};
    flatten(other, call, argument, held.leaves);
    check_kept(held, call);
    return held;
}

void Tree::hold_groups(py::object groups, const std::string& call) {
    own_.groups = std::move(groups);
    check_kept(call);
}

void Tree::check_kept(const Held& held, const std::string& call) const {
    SecondLook(*this, held, call, SecondLook::When::at_once).compare();
}

void Tree::check_unchanged(const Held& held, const std::string& call) const {
    SecondLook(*this, held, call, SecondLook::When::later).compare();
}

int Tree::Held::traverse(visitproc visit, void* arg) const {
    Py_VISIT(structure.ptr());
    Py_VISIT(groups.ptr());
    for (const py::object& leaf : leaves) Py_VISIT(leaf.ptr());
    return 0;
}

int Tree::traverse(visitproc visit, void* arg) const {
    if (const int result = own_.traverse(visit, arg); result != 0) return result;
    return traverse(root_, visit, arg);
}

int Tree::traverse(const Node& node, visitproc visit, void* arg) {
    for (const py::object& key : node.keys) Py_VISIT(key.ptr());
    for (const Node& child : node.children) {
        if (const int result = traverse(child, visit, arg); result != 0) return result;
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
