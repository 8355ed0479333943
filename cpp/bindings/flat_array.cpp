#include "bindings/flat_array.hpp"

#include <cstdint>

namespace schuss::bindings {

void check_flat(const ArrayView& array, const Name& name, std::size_t alignment) {
    const auto itemsize = static_cast<std::ptrdiff_t>(array.itemsize());
    const bool is_flat = array.ndim() == 1 && (array.strides()[0] == itemsize || array.size() <= 1);
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignment == 0;
    if (is_flat && (is_aligned || array.size() == 0)) return;
    throw py::value_error(name.text() +
                          " has several axes or gaps, or is not aligned, expected a contiguous, "
                          "aligned array with one axis (np.ravel(x, order='K') makes one)");
}

FlatArray flat_array(py::handle array, const Name& name, bool written) {
    const ArrayView view(array, name);
    const ElementType type = element_type_of(view, name);
    check_flat(view, name, numbers::size_of(type.dtype));
    if (written) check_writable(view, name);
    return {view, type};
}

}  // namespace schuss::bindings
