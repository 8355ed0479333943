#include "bindings/arrays.hpp"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

namespace schuss::bindings {
namespace {

std::string text(py::handle object) {
    return py::str(object).cast<std::string>();
}

std::string type_name(py::handle object) {
    return py::type::handle_of(object).attr("__name__").cast<std::string>();
}

[[noreturn]] void refuse_object(py::handle object, const Name& name, const std::string& why) {
    throw py::type_error(name.text() + " is a " + type_name(object) + why +
                         ", expected a NumPy array, or an object that shows its memory by "
                         "__dlpack__ or the buffer protocol");
}

[[noreturn]] void refuse_dtype(const py::array& array, const Name& name,
                               const std::string& expected) {
    throw py::type_error(name.text() + " has dtype " + text(array.dtype()) + ", expected " +
                         expected);
}

void check_shape(const py::array& array, const Name& name, const py::array& other,
                 const std::string& other_name) {
    if (shape_of(array) == shape_of(other)) return;
    throw py::value_error(name.text() + " has shape " + text(array.attr("shape")) + ", expected " +
                          text(other.attr("shape")) + " (the shape of " + other_name + ")");
}

/// The format of a dtype, whatever its byte order. NumPy knows bfloat16 from ml_dtypes, by name.
std::optional<numbers::Number> find_number(const py::dtype& dtype) {
    using numbers::Number;
    if (dtype.kind() == 'f') {
        for (const Number number : {Number::float32, Number::float64, Number::float16}) {
            if (static_cast<std::size_t>(dtype.itemsize()) == numbers::size_of(number)) {
                return number;
            }
        }
    }
    const bool may_be_bfloat16 = dtype.kind() == 'V' && dtype.itemsize() == 2;
    if (may_be_bfloat16 && text(dtype.attr("name")) == "bfloat16") return Number::bfloat16;
    return std::nullopt;
}

bool is_native(const py::dtype& dtype) {
    return dtype.attr("isnative").cast<bool>();
}

const char* name_of(numbers::Number number) {
    constexpr const char* names[] = {"float32", "float64", "float16", "bfloat16"};
    return names[static_cast<int>(number)];
}

/// The memory that the object shows by DLPack. Only a refusal to know the argument `copy`, which
/// came late to the protocol, excuses asking without it.
py::object from_dlpack(py::handle object) {
    const py::object from_dlpack = py::module_::import("numpy").attr("from_dlpack");
    try {
        return from_dlpack(object, py::arg("copy") = false);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
        return from_dlpack(object);
    }
}

/// numpy.shares_memory, which is exact, within a bound on the work; an answer that would take
/// longer is nullopt.
std::optional<bool> share_memory(const py::array& a, const py::array& b) {
    constexpr int work = 1'000'000;
    const py::module_ numpy = py::module_::import("numpy");
    try {
        return numpy.attr("shares_memory")(plain(a), plain(b), py::arg("max_work") = work)
            .cast<bool>();
    } catch (py::error_already_set& error) {
        if (!error.matches(numpy.attr("exceptions").attr("TooHardError"))) throw;
        return std::nullopt;
    }
}

/// Whether two elements of the array share memory: the element at the start of an axis, with all
/// that lies within it, against the rest of that axis, for each axis in turn.
bool elements_overlap(const py::array& maybe_subclass) {
    if (plainly_distinct(maybe_subclass)) return false;
    const py::array array = plain(maybe_subclass);
    const py::ssize_t ndim = array.ndim();
    for (py::ssize_t axis = 0; axis < ndim; ++axis) {
        if (array.shape(axis) == 1) continue;
        py::tuple first(static_cast<std::size_t>(ndim)), rest(static_cast<std::size_t>(ndim));
        for (py::ssize_t i = 0; i < ndim; ++i) {
            const auto place = static_cast<std::size_t>(i);
            const py::object all = py::slice(std::nullopt, std::nullopt, std::nullopt);
            const py::object one = py::slice(0, 1, 1);
            first[place] = i <= axis ? one : all;
            rest[place] = i < axis ? one : i == axis ? py::slice(1, std::nullopt, 1) : all;
        }
        const py::array a = array[first], b = array[rest];
        if (share_memory(a, b).value_or(true)) return true;
    }
    return false;
}

[[noreturn]] void refuse_sharing(const Name& name, const std::string& other, bool certain) {
    throw py::value_error(name.text() +
                          (certain ? " shares memory with " : " may share memory with ") + other +
                          ", expected memory of its own");
}

bool same_elements(const py::array& a, const py::array& b) {
    return a.data() == b.data() && a.ndim() == b.ndim() &&
           std::equal(a.shape(), a.shape() + a.ndim(), b.shape()) &&
           std::equal(a.strides(), a.strides() + a.ndim(), b.strides());
}

}  // namespace

bool plainly_distinct(const py::array& array) {
    std::vector<std::pair<std::size_t, std::size_t>> axes;  // stride, size
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        if (array.shape(i) == 0) return true;
        if (array.shape(i) == 1) continue;
        const py::ssize_t stride = array.strides(i);
        axes.emplace_back(static_cast<std::size_t>(stride < 0 ? -stride : stride),
                          static_cast<std::size_t>(array.shape(i)));
    }
    std::sort(axes.begin(), axes.end());
    auto extent = static_cast<std::size_t>(array.itemsize());
    for (const auto& [stride, size] : axes) {
        if (stride < extent) return false;
        extent += stride * (size - 1);
    }
    return true;
}

py::array plain(const py::array& array) {
    const auto& numpy = py::detail::npy_api::get();
    auto* const view =
        numpy.PyArray_View_(array.ptr(), nullptr, reinterpret_cast<PyObject*>(numpy.PyArray_Type_));
    if (view == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::array>(view);
}

bool is_array_like(py::handle object) {
    // The common containers first: to look for an attribute that is not there is slow.
    if (PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr()) ||
        PyDict_CheckExact(object.ptr())) {
        return false;
    }
    return py::isinstance<py::array>(object) || PyObject_CheckBuffer(object.ptr()) != 0 ||
           py::hasattr(object, "__dlpack__");
}

py::array as_array(py::handle object, const Name& name) {
    if (py::isinstance<py::array>(object)) return py::reinterpret_borrow<py::array>(object);
    if (!is_array_like(object)) refuse_object(object, name, "");
    const py::module_ numpy = py::module_::import("numpy");
    try {
        // PyTorch's DLPack lets go of memory that the tensor is made to let go of, and shows
        // negated numbers as they lie. Its `numpy` never copies, and does neither.
        if (py::hasattr(object, "__torch_function__")) return object.attr("numpy")();
        if (py::hasattr(object, "__dlpack__")) return from_dlpack(object);
        const auto view = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(object.ptr()));
        if (!view) throw py::error_already_set();
        return numpy.attr("asarray")(view);
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_Exception)) throw;
        refuse_object(object, name, " that does not show its memory (" + text(error.value()) + ")");
    }
}

numbers::Number number_of(const py::array& array, const Name& name) {
    const std::optional<numbers::Number> number = find_number(array.dtype());
    if (!number) refuse_dtype(array, name, "float32, float64, float16 or bfloat16");
    if (!is_native(array.dtype())) refuse_dtype(array, name, "native byte order");
    return *number;
}

numbers::Number computed_number_of(const py::array& array, const Name& name) {
    const std::optional<numbers::Number> number = find_number(array.dtype());
    const bool is_computed = number && *number == numbers::computed(*number);
    if (!is_computed) refuse_dtype(array, name, "float32 or float64");
    return number_of(array, name);
}

std::vector<std::size_t> shape_of(const py::array& array) {
    std::vector<std::size_t> shape;
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        shape.push_back(static_cast<std::size_t>(array.shape(i)));
    }
    return shape;
}

void check_like(const py::array& array, const Name& name, const py::array& other,
                const std::string& other_name) {
    if (!array.dtype().equal(other.dtype())) {
        refuse_dtype(array, name, text(other.dtype()) + " (the dtype of " + other_name + ")");
    }
    check_shape(array, name, other, other_name);
}

numbers::Number check_goes_with(const py::array& array, const Name& name, Goes how,
                                const py::array& parameter, const std::string& parameter_name) {
    using numbers::Number;
    const Number of_parameter = find_number(parameter.dtype()).value();
    const Number computed = numbers::computed(of_parameter);
    std::vector<Number> expected;
    const auto expect = [&expected](Number number) {
        if (std::find(expected.begin(), expected.end(), number) == expected.end()) {
            expected.push_back(number);
        }
    };
    if (how == Goes::converted) expect(of_parameter);
    if (how != Goes::halved) expect(computed);
    if (computed == Number::float32) {
        if (how == Goes::converted || how == Goes::halved) expect(Number::float16);
        if (how != Goes::as_computed) expect(Number::bfloat16);
    }
    const std::optional<Number> number = find_number(array.dtype());
    const bool is_expected =
        number && std::find(expected.begin(), expected.end(), *number) != expected.end();
    if (!is_expected || !is_native(array.dtype())) {
        std::string names;
        for (std::size_t i = 0; i < expected.size(); ++i) {
            if (i > 0) names += i + 1 < expected.size() ? ", " : " or ";
            names += name_of(expected[i]);
            if (expected[i] == of_parameter) names += " (the dtype of " + parameter_name + ")";
        }
        refuse_dtype(array, name, names);
    }
    check_shape(array, name, parameter, parameter_name);
    return *number;
}

void check_writable(const py::array& array, const Name& name) {
    if (!array.writeable()) {
        throw py::value_error(name.text() + " is read-only, expected a writeable array");
    }
    if (elements_overlap(array)) {
        throw py::value_error(name.text() +
                              " has elements that overlap in memory (a broadcast view?), expected "
                              "each element in a place of its own");
    }
}

Bounds bounds_of(const py::array& array) {
    const auto data = reinterpret_cast<std::size_t>(array.data());
    if (array.size() == 0) return {data, data};
    Bounds bounds{data, data + static_cast<std::size_t>(array.itemsize())};
    for (py::ssize_t i = 0; i < array.ndim(); ++i) {
        const py::ssize_t reach = (array.shape(i) - 1) * array.strides(i);
        (reach < 0 ? bounds.begin : bounds.end) += static_cast<std::size_t>(reach);
    }
    return bounds;
}

WrittenMemory::Entry WrittenMemory::entry(py::array array, std::string argument) {
    const Bounds bounds = bounds_of(array);
    return {std::move(array), std::move(argument), bounds};
}

WrittenMemory::WrittenMemory(const std::string& call, std::vector<Entry> entries) {
    std::erase_if(entries, [](const Entry& e) { return e.bounds.begin == e.bounds.end; });
    // Stable, so that of two equal arrays the message names the later one first.
    std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
        return a.bounds.begin < b.bounds.begin;
    });
    for (std::size_t i = 0; i < entries.size(); ++i) {
        const Entry& entry = entries[i];
        for (std::size_t j = i + 1; j < entries.size(); ++j) {
            const Entry& next = entries[j];
            if (!entry.bounds.meets(next.bounds)) break;
            if (same_elements(entry.array, next.array)) {
                throw py::value_error(call + ": " + next.argument + " is the same array as " +
                                      entry.argument + ", expected each array once");
            }
            const auto shared = share_memory(entry.array, next.array);
            if (shared.value_or(true)) {
                refuse_sharing({call, next.argument}, entry.argument, shared.has_value());
            }
        }
        if (!covered_.empty() && covered_.back().end > entry.bounds.begin) {
            covered_.back().end = std::max(covered_.back().end, entry.bounds.end);
        } else {
            covered_.push_back(entry.bounds);
        }
    }
    entries_ = std::move(entries);
}

void WrittenMemory::check_apart(const py::array& array, const Bounds& bounds, const Name& name,
                                Bounds& gap) const {
    // The first covered range that ends past the array's beginning.
    const auto next =
        std::upper_bound(covered_.begin(), covered_.end(), bounds.begin,
                         [](std::size_t begin, const Bounds& range) { return begin < range.end; });
    if (next == covered_.end() || bounds.end <= next->begin) {
        gap.begin = next == covered_.begin() ? 0 : std::prev(next)->end;
        gap.end = next == covered_.end() ? std::numeric_limits<std::size_t>::max() : next->begin;
        return;
    }
    for (const Entry& entry : entries_) {
        if (!entry.bounds.meets(bounds)) continue;
        const auto shared = share_memory(array, entry.array);
        if (shared.value_or(true)) refuse_sharing(name, entry.argument, shared.has_value());
    }
}

}  // namespace schuss::bindings
