#include "bindings/array_cache.hpp"

#include <algorithm>

namespace schuss::bindings {
namespace {

using Fields = py::detail::PyArray_Proxy;

Fields& fields_of(PyObject* array) {
    return *py::detail::array_proxy(array);
}

bool equal(const py::ssize_t* a, const py::ssize_t* b, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
        if (a[i] != b[i]) return false;
    }
    return true;
}

}  // namespace

void ArrayCache::add(const ArrayView& parameter) {
    const std::size_t axes = parameter.ndim();
    entries_.push_back({parameter.array().ptr(), reinterpret_cast<char*>(parameter.data()),
                        parameter.dtype().ptr(), nullptr, 0, 0, 0, 1,
                        static_cast<std::uint32_t>(axes),
                        static_cast<std::uint32_t>(axes_.size())});
    axes_.insert(axes_.end(), parameter.shape().begin(), parameter.shape().end());
    axes_.insert(axes_.end(), parameter.strides().begin(), parameter.strides().end());
    axes_.resize(axes_.size() + axes);
    dtypes_.push_back(parameter.dtype());
    dtypes_.emplace_back();
}

bool ArrayCache::parameter_is_unchanged(std::size_t i) const {
    const Entry& entry = entries_[i];
    const Fields& f = fields_of(entry.parameter);
    const py::ssize_t* const shape = axes_.data() + entry.first_axis;
    return f.data == entry.data && f.descr == entry.dtype &&
           static_cast<std::uint32_t>(f.nd) == entry.ndim &&
           equal(f.dimensions, shape, entry.ndim) &&
           equal(f.strides, shape + entry.ndim, entry.ndim) &&
           (f.flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0;
}

bool ArrayCache::same_layout(const Entry& entry, const py::array& gradient) const {
    const Fields& f = fields(gradient);
    const py::ssize_t* const shape = axes_.data() + entry.first_axis;
    return f.descr == entry.gradient_dtype && static_cast<std::uint32_t>(f.nd) == entry.ndim &&
           equal(f.dimensions, shape, entry.ndim) &&
           equal(f.strides, shape + 2 * entry.ndim, entry.ndim);
}

std::byte* ArrayCache::matches(std::size_t i, const py::array& gradient) const {
    const Entry& entry = entries_[i];
    char* const data = fields(gradient).data;
    const auto first = reinterpret_cast<std::size_t>(data);
    const bool is = first >= entry.min_first && first <= entry.max_first &&
                    (first & (entry.item_size - 1)) == entry.misalignment &&
                    same_layout(entry, gradient);
    return is ? reinterpret_cast<std::byte*>(data) : nullptr;
}

bool ArrayCache::at_address(std::size_t i, const py::array& gradient,
                            const std::byte* first) const {
    return reinterpret_cast<const std::byte*>(fields(gradient).data) == first &&
           same_layout(entries_[i], gradient);
}

void ArrayCache::store(std::size_t i, const ArrayView& gradient, const AddressRange& free_range) {
    Entry& entry = entries_[i];
    const AddressRange bounds = bounds_of(gradient);
    const auto first = reinterpret_cast<std::size_t>(gradient.data());
    const std::size_t before = first - bounds.begin, after = bounds.end - first;
    dtypes_[2 * i + 1] = gradient.dtype();
    std::copy_n(gradient.strides().data(), entry.ndim,
                axes_.data() + entry.first_axis + 2 * entry.ndim);
    entry.gradient_dtype = gradient.dtype().ptr();
    entry.item_size = static_cast<std::uint32_t>(gradient.itemsize());
    entry.misalignment = static_cast<std::uint32_t>(first & (entry.item_size - 1));
    entry.min_first = free_range.begin + before;
    entry.max_first = free_range.end - after;
}

void ArrayCache::prefetch(std::size_t i, const std::vector<py::object>& gradients) const {
    // The objects first: they have the addresses of their shapes.
    constexpr std::size_t objects_ahead = 16, shapes_ahead = 8;
    if (i + objects_ahead < entries_.size()) {
        for (const PyObject* object :
             {entries_[i + objects_ahead].parameter, gradients[i + objects_ahead].ptr()}) {
            __builtin_prefetch(object);
            __builtin_prefetch(reinterpret_cast<const char*>(object) + 64);
        }
    }
    if (i + shapes_ahead < entries_.size()) {
        for (PyObject* object :
             {entries_[i + shapes_ahead].parameter, gradients[i + shapes_ahead].ptr()}) {
            __builtin_prefetch(fields_of(object).dimensions);
        }
    }
}

}  // namespace schuss::bindings
