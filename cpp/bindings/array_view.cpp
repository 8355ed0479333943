#include "bindings/array_view.hpp"

#include <cstdint>
#include <utility>

#include "bindings/dlpack.hpp"
#include "bindings/free_threads.hpp"

namespace schuss::bindings {
namespace {

using npy = py::detail::npy_api;

std::string type_name(py::handle object) {
    return py::type::handle_of(object).attr("__name__").cast<std::string>();
}

[[noreturn]] void refuse_object(py::handle object, const Name& name, const std::string& why) {
    // The parameters of a PyTorch module.
    const bool requires_grad = py::getattr(object, "requires_grad", py::none()).is(py::bool_(true));
    std::string remedy;
    if (requires_grad) {
        remedy = " (tensor.detach() is one, or use schuss.torch)";
    } else if (has_attribute(object, "to_dense")) {
        remedy = " (its to_dense() makes one)";
    }
    throw py::type_error(name.text() + " is a " + type_name(object) + why +
                         ", expected a NumPy array, or an object that exports its memory by "
                         "__dlpack__ or the buffer protocol" +
                         remedy);
}

/// Whether the error says that an object does not export its memory. Other errors, such as the
/// time-out of a signal handler, are passed on.
bool is_refusal(const py::error_already_set& error) {
    for (const py::handle kind : {PyExc_TypeError, PyExc_ValueError, PyExc_RuntimeError,
                                  PyExc_BufferError, PyExc_AttributeError}) {
        if (error.matches(kind)) return true;
    }
    return false;
}

/// A module, if it was imported; an empty object otherwise.
py::object imported_module(const char* name) {
    auto module = py::reinterpret_steal<py::object>(PyImport_GetModule(py::str(name).ptr()));
    if (!module && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return module;
}

/// A PyTorch tensor that its `numpy` method accepts: bfloat16, which NumPy lacks, seen as int16.
/// The view does not require grad, so tensors that do are returned as they are.
py::object without_bfloat16(py::handle tensor) {
    auto same = py::reinterpret_borrow<py::object>(tensor);
    const py::object torch = imported_module("torch");
    if (!torch || !py::isinstance(tensor, torch.attr("Tensor"))) return same;
    if (!tensor.attr("dtype").is(torch.attr("bfloat16"))) return same;
    if (tensor.attr("requires_grad").cast<bool>()) return same;
    return tensor.attr("view")(torch.attr("int16"));
}

/// The memory of a PyTorch tensor, from its `numpy` method, which never copies. Memory exported by
/// DLPack may be freed when the tensor is given other memory, and ignores a lazy negation. But for
/// a tensor without memory, `numpy` makes an array with new memory.
py::object from_tensor(py::handle tensor, const Name& name) {
    const py::object shown = without_bfloat16(tensor);
    py::object array = shown.attr("numpy")();
    if (!py::isinstance<py::array>(array)) {
        refuse_object(tensor, name, " whose numpy() is a " + type_name(array));
    }
    if (!shown.is(tensor)) array = array.attr("view")(bfloat16_dtype(name));
    if (!has_attribute(tensor, "data_ptr")) return array;
    const auto& exported = fields(py::reinterpret_borrow<py::array>(array));
    const auto address = tensor.attr("data_ptr")().cast<std::uintptr_t>();
    const bool empty = py::reinterpret_borrow<py::array>(array).size() == 0;
    if (!empty && address != reinterpret_cast<std::uintptr_t>(exported.data)) {
        refuse_object(tensor, name, " without memory of its own");
    }
    return array;
}

py::object exported_by(py::handle object, const Name& name) {
    if (has_attribute(object, "__torch_function__")) return from_tensor(object, name);
    if (has_attribute(object, "__dlpack__")) return from_dlpack(object, name);
    const auto view = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(object.ptr()));
    if (!view) throw py::error_already_set();
    return py::module_::import("numpy").attr("asarray")(view);
}

/// Whether it is a masked array. It cannot be if numpy.ma was not imported.
bool is_masked(py::handle array) {
    if (is_plain_array(array)) return false;
    const py::object module = imported_module("numpy.ma");
    return module && py::isinstance(array, module.attr("MaskedArray"));
}

/// The array that owns the memory of this one, as far as NumPy knows.
py::array owner_of(const py::array& array) {
    PyObject* owner = array.ptr();
    for (;;) {
        PyObject* const base = py::detail::array_proxy(owner)->base;
        if (base == nullptr || !py::isinstance<py::array>(base)) break;
        owner = base;
    }
    return py::reinterpret_borrow<py::array>(owner);
}

/// Whether `tensor_layout` can read the object. Objects that only resemble tensors lack some of the
/// attributes.
bool is_tensor(py::handle object) {
    return has_attribute(object, "__torch_function__") && has_attribute(object, "data_ptr") &&
           has_attribute(object, "shape") && has_attribute(object, "stride") &&
           has_attribute(object, "dtype");
}

/// The memory and layout of a PyTorch tensor. Reading them takes less time than exporting the
/// memory.
py::object tensor_layout(py::handle tensor) {
    const auto read = [tensor](Interned& name, bool is_method) {
        auto* const result = is_method ? PyObject_CallMethodNoArgs(tensor.ptr(), name.get())
                                       : PyObject_GetAttr(tensor.ptr(), name.get());
        if (result == nullptr) throw py::error_already_set();
        return py::reinterpret_steal<py::object>(result);
    };
    static constinit Interned data_ptr("data_ptr");
    static constinit Interned shape("shape");
    static constinit Interned stride("stride");
    static constinit Interned dtype("dtype");
    return py::make_tuple(read(data_ptr, true), read(shape, false), read(stride, true),
                          read(dtype, false));
}

bool is_writeable(const py::detail::PyArray_Proxy& array) {
    return (array.flags & npy::NPY_ARRAY_WRITEABLE_) != 0;
}

}  // namespace

bool has_attribute(py::handle object, const char* name) {
    const auto found =
        py::reinterpret_steal<py::object>(PyObject_GetAttrString(object.ptr(), name));
    if (found) return true;
    if (PyErr_ExceptionMatches(PyExc_AttributeError) == 0) throw py::error_already_set();
    PyErr_Clear();
    return false;
}

bool is_array_like(py::handle object) {
    // The common containers first: the search for a missing attribute is slow.
    if (PyList_CheckExact(object.ptr()) || PyTuple_CheckExact(object.ptr()) ||
        PyDict_CheckExact(object.ptr())) {
        return false;
    }
    return py::isinstance<py::array>(object) || PyObject_CheckBuffer(object.ptr()) != 0 ||
           has_attribute(object, "__dlpack__");
}

py::dtype bfloat16_dtype(const Name& name) {
    try {
        return py::dtype::from_args(py::module_::import("ml_dtypes").attr("bfloat16"));
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_ImportError)) throw;
    }
    throw py::import_error(name.text() +
                           " is 'bfloat16', which NumPy has from ml_dtypes: pip install "
                           "'schuss[bfloat16]'");
}

py::array as_array(py::handle object, const Name& name) {
    py::object array = py::reinterpret_borrow<py::object>(object);
    if (!py::isinstance<py::array>(object)) {
        if (!is_array_like(object)) refuse_object(object, name, "");
        try {
            array = exported_by(object, name);
        } catch (py::error_already_set& error) {
            if (!is_refusal(error)) throw;
            refuse_object(object, name,
                          " that does not export its memory (" +
                              py::str(error.value()).cast<std::string>() + ")");
        }
    }
    if (is_masked(array)) {
        throw py::type_error(
            name.text() + " is a " + type_name(array) +
            ", expected an array without a mask (np.ma.getdata(a) drops the mask, and "
            "a.filled(value) replaces the masked elements)");
    }
    return py::reinterpret_steal<py::array>(array.release());
}

namespace {

/// NumPy does not resize an array that has a weak reference, not even with refcheck=False.
py::object weak_reference(const py::array& owner) {
    auto reference = py::reinterpret_steal<py::object>(PyWeakref_NewRef(owner.ptr(), nullptr));
    if (!reference) throw py::error_already_set();
    return reference;
}

}  // namespace

py::object hold(const py::array& array) {
    return weak_reference(owner_of(array));
}

ArrayView::ArrayView(py::handle object, const Name& name)
    : object_(py::reinterpret_borrow<py::object>(object)), array_(as_array(object, name)) {
    if (!is_own_array() && is_tensor(object_)) tensor_ = tensor_layout(object_);
    owner_ = owner_of(array_);
    hold_ = weak_reference(owner_);
    // No Python code runs below.
    const auto& f = fields(array_);
    data_ = reinterpret_cast<std::byte*>(f.data);
    strides_.assign(f.strides, f.strides + f.nd);
    for (int i = 0; i < f.nd; ++i) shape_.push_back(static_cast<std::size_t>(f.dimensions[i]));
    dtype_ = py::reinterpret_borrow<py::dtype>(f.descr);
    writeable_ = is_writeable(f);
    owners_data_ = fields(owner_).data;
}

std::size_t ArrayView::size() const {
    std::size_t size = 1;
    for (const std::size_t n : shape_) size *= n;
    return size;
}

py::array ArrayView::plain() const {
    return new_array(data_, shape_, strides_);
}

py::array ArrayView::part(std::byte* first, std::size_t count) const {
    return new_array(first, {count}, {static_cast<std::ptrdiff_t>(itemsize())});
}

py::array ArrayView::new_array(std::byte* data, const std::vector<std::size_t>& shape,
                               const std::vector<std::ptrdiff_t>& strides) const {
    const auto& numpy = npy::get();
    const std::vector<Py_intptr_t> sizes(shape.begin(), shape.end());
    static const Py_intptr_t none = 0;  // for an array without axes; nullptr means default strides
    const py::tuple base = py::make_tuple(array_, owner_, hold_);
    auto array = py::reinterpret_steal<py::array>(numpy.PyArray_NewFromDescr_(
        numpy.PyArray_Type_, py::dtype(dtype_).release().ptr(), static_cast<int>(shape.size()),
        sizes.data(), strides.empty() ? &none : strides.data(), data,
        writeable_ ? npy::NPY_ARRAY_WRITEABLE_ : 0, nullptr));
    if (!array) throw py::error_already_set();
    if (numpy.PyArray_SetBaseObject_(array.ptr(), py::object(base).release().ptr()) != 0) {
        throw py::error_already_set();
    }
    return array;
}

bool ArrayView::is_in_place() const {
    return reinterpret_cast<std::byte*>(fields(array_).data) == data_ &&
           fields(owner_).data == owners_data_;
}

bool ArrayView::has_its_memory() const {
    const auto& f = fields(array_);
    if (!is_in_place() || (writeable_ && !is_writeable(f))) return false;
    std::size_t size_now = 1;
    for (int i = 0; i < f.nd; ++i) size_now *= static_cast<std::size_t>(f.dimensions[i]);
    return size_now == size();
}

bool ArrayView::shows_its_memory(const Name& name) const {
    // A memoryview never changes its memory, and the array keeps the memory when it is released.
    if (is_own_array() || PyMemoryView_Check(object_.ptr()) != 0) return true;
    if (tensor_) return tensor_layout(object_).equal(tensor_);
    const ArrayView now(object_, name);
    return same_memory(now, *this) && now.writeable_ == writeable_;
}

int ArrayView::traverse(visitproc visit, void* arg) const {
    Py_VISIT(object_.ptr());
    Py_VISIT(array_.ptr());
    Py_VISIT(owner_.ptr());
    return 0;
}

bool same_memory(const ArrayView& a, const ArrayView& b) {
    const bool same_elements = a.data() == b.data() && a.strides() == b.strides();
    return a.shape() == b.shape() && a.dtype().equal(b.dtype()) && (same_elements || a.size() == 0);
}

void check_has_its_memory(const ArrayView& view, const Name& name) {
    if (view.has_its_memory()) return;
    throw py::value_error(name.text() +
                          " was changed while it was read, expected it to stay as it is");
}

void check_shows_its_memory(const ArrayView& view, const Name& name) {
    if (view.shows_its_memory(name)) return;
    throw py::value_error(name.text() + " is a " + type_name(view.object()) +
                          " that shows different memory at each access, expected the same "
                          "memory, or what is written there is lost");
}

}  // namespace schuss::bindings
