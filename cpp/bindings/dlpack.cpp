#include "bindings/dlpack.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace schuss::bindings {
namespace {

// The structs of dlpack.h: https://dmlc.github.io/dlpack/latest/c_api.html

struct Tensor {
    void* data;
    std::int32_t device_type, device_id;
    std::int32_t ndim;
    std::uint8_t code, bits;  // of the dtype
    std::uint16_t lanes;
    const std::int64_t* shape;
    const std::int64_t* strides;  // in elements; nullptr: C order
    std::uint64_t byte_offset;
};

struct Unversioned {
    Tensor tensor;
    void* context;
    void (*deleter)(Unversioned*);

    static constexpr const char* name = "dltensor";
    static constexpr const char* used_name = "used_dltensor";
    bool is_read_only() const { return true; }  // it does not say
    bool is_known() const { return true; }
};

struct Versioned {
    std::uint32_t major, minor;
    void* context;
    void (*deleter)(Versioned*);
    std::uint64_t flags;
    Tensor tensor;

    static constexpr const char* name = "dltensor_versioned";
    static constexpr const char* used_name = "used_dltensor_versioned";
    bool is_read_only() const { return (flags & 1) != 0; }
    bool is_known() const { return major <= 1; }
};

[[noreturn]] void refuse(const std::string& why) {
    PyErr_SetString(PyExc_BufferError, why.c_str());
    throw py::error_already_set();
}

/// Whether the CPU can read the memory: its own, that which it shares with CUDA or ROCm, and that
/// which CUDA manages.
bool is_on_cpu(std::int32_t device_type) {
    return device_type == 1 || device_type == 3 || device_type == 11 || device_type == 13;
}

py::dtype dtype_of(const Tensor& tensor, const Name& name) {
    constexpr std::uint8_t bfloat = 4;
    if (tensor.code == bfloat && tensor.bits == 16 && tensor.lanes == 1) {
        return bfloat16_dtype(name);
    }
    // The kinds of NumPy in the order of the codes: int, uint, float, handle, bfloat, complex,
    // bool.
    const std::string kinds = "iuf  cb";
    const char kind = tensor.code < kinds.size() ? kinds[tensor.code] : ' ';
    if (kind == ' ' || tensor.bits % 8 != 0 || tensor.lanes != 1) {
        refuse("NumPy has no dtype for it");
    }
    return py::dtype(kind + std::to_string(tensor.bits / 8));
}

template <class Managed>
py::array consume(const py::object& capsule, const Name& name) {
    auto* const managed = static_cast<Managed*>(PyCapsule_GetPointer(capsule.ptr(), Managed::name));
    if (managed == nullptr) throw py::error_already_set();
    if (!managed->is_known()) refuse("its version of DLPack is newer than 1");
    const Tensor& tensor = managed->tensor;
    if (!is_on_cpu(tensor.device_type)) {
        refuse("it is on a device of type " + std::to_string(tensor.device_type) +
               ", and NumPy's arrays are in the memory of the CPU: copy it there");
    }
    const py::dtype dtype = dtype_of(tensor, name);
    const std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.ndim);
    std::vector<py::ssize_t> strides;
    if (tensor.strides != nullptr) {
        for (int i = 0; i < tensor.ndim; ++i) {
            strides.push_back(tensor.strides[i] * dtype.itemsize());
        }
    }
    // From here on, the array owns the memory.
    if (PyCapsule_SetName(capsule.ptr(), Managed::used_name) != 0) throw py::error_already_set();
    const py::capsule owner(static_cast<void*>(managed), [](void* pointer) {
        auto* const owned = static_cast<Managed*>(pointer);
        if (owned->deleter != nullptr) owned->deleter(owned);
    });
    const auto* const data = static_cast<const std::byte*>(tensor.data) + tensor.byte_offset;
    py::array array(dtype, shape, strides, data, owner);
    if (managed->is_read_only()) array.attr("setflags")(py::arg("write") = false);
    return array;
}

/// The capsule of the memory. Older versions of the protocol lack the arguments: only then are
/// they omitted.
py::object capsule_of(py::handle object) {
    const py::object dlpack = object.attr("__dlpack__");
    try {
        return dlpack(py::arg("copy") = false, py::arg("max_version") = py::make_tuple(1, 0));
    } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
    }
    return dlpack();
}

}  // namespace

py::array from_dlpack(py::handle object, const Name& name) {
    const py::object capsule = capsule_of(object);
    if (PyCapsule_IsValid(capsule.ptr(), Versioned::name) != 0) {
        return consume<Versioned>(capsule, name);
    }
    return consume<Unversioned>(capsule, name);
}

}  // namespace schuss::bindings
