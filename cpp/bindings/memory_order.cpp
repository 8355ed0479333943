// The elements of arrays in the order in which those of a parameter are in memory.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "bindings/flat_array.hpp"
#include "bindings/gil.hpp"
#include "bindings/overlap.hpp"
#include "bindings/register.hpp"
#include "data/ordered_copy.hpp"
#include "engine/memory_order.hpp"

namespace schuss::bindings {
namespace {

/// What copies know of the items of an array: their size alone, but for complex numbers, whose
/// alignment is that of a component.
struct Items {
    engine::Operand operand;
    std::size_t elements;  // of an item, as the engine counts them

    Items(const ArrayView& array, const Name& name)
        : operand{.role = engine::Role::gradient,
                  .dtype = numbers::DType::float32,
                  .data = array.data(),
                  .strides = array.strides().data()} {
        const bool is_complex = array.dtype().kind() == 'c' || array.itemsize() == 16;
        operand.components = is_complex ? 2 : 1;
        elements = operand.components;
        switch (array.itemsize() / elements) {
            case 1:
                operand.role = engine::Role::master;
                operand.master = numbers::Master::float24;
                break;
            case 2:
                operand.dtype = numbers::DType::float16;
                break;
            case 4:
                break;
            case 8:
                operand.dtype = numbers::DType::float64;
                break;
            default:
                throw py::type_error(name.text() + " has items of " +
                                     std::to_string(array.itemsize()) +
                                     " bytes, expected 1, 2, 4, 8 or 16");
        }
    }
};

class MemoryOrder {
  public:
    explicit MemoryOrder(py::handle param) {
        const ArrayView view(param, {call, "param"});
        shape_ = view.shape();
        strides_ = view.strides();
    }

    py::object flat(py::handle array) const {
        const Name name{call + ".flat", "array"};
        const ArrayView view(array, name);
        const Items items(view, name);
        const engine::MemoryOrder order = order_of(view, items, name);
        if (view.size() > 0 && !order.contiguous()) return py::none();
        std::byte* const first = view.data() + (view.size() > 0 ? order.offset() : 0);
        return view.part(first, view.size());
    }

    void gather(py::handle array, std::size_t begin, py::handle out) const {
        copy(array, begin, out, call + ".gather", "out", true);
    }
    void scatter(py::handle values, std::size_t begin, py::handle array) const {
        copy(array, begin, values, call + ".scatter", "values", false);
    }

  private:
    inline static const std::string call = "MemoryOrder";

    engine::MemoryOrder order_of(const ArrayView& array, const Items& items,
                                 const Name& name) const {
        if (array.shape() != shape_) {
            throw py::value_error(name.text() +
                                  " has another shape than the parameter, expected "
                                  "the same");
        }
        const engine::Operand parameter{.role = engine::Role::parameter,
                                        .dtype = numbers::DType::float32,
                                        .data = nullptr,
                                        .strides = strides_.data()};
        return {shape_, parameter, items.operand};
    }

    /// Copies between an array and its elements from `begin` on, or back.
    void copy(py::handle strided, std::size_t begin, py::handle dense, const std::string& method,
              const std::string& dense_argument, bool gathers) const {
        const Name array_name{method, "array"}, dense_name{method, dense_argument};
        const ArrayView array(strided, array_name), values(dense, dense_name);
        const Items items(array, array_name);
        const engine::MemoryOrder order = order_of(array, items, array_name);
        check_flat(values, dense_name, 1);
        if (!values.dtype().equal(array.dtype())) {
            throw py::type_error(dense_name.text() +
                                 " has another dtype than the array, expected "
                                 "the same");
        }
        if (begin > array.size() || values.size() > array.size() - begin) {
            throw py::value_error(dense_name.text() + " ends past the last element of the array");
        }
        check_writable(gathers ? values : array, gathers ? dense_name : array_name);
        check_disjoint(method, {{array, "array", !gathers}, {values, dense_argument, gathers}});
        const std::size_t count = values.size() * items.elements;
        const std::size_t size = array.itemsize() / items.elements;
        run_without_gil(count, [&]() noexcept {
            const std::size_t first = begin * items.elements;
            if (gathers) {
                data::gather_in_order(order, size, array.data(), first, count, values.data());
            } else {
                data::scatter_in_order(order, size, values.data(), first, count, array.data());
            }
        });
    }

    std::vector<std::size_t> shape_;
    std::vector<std::ptrdiff_t> strides_;
};

}  // namespace

void register_memory_order(py::module_& module) {
    py::class_<MemoryOrder>(module, "MemoryOrder")
        .def(py::init<py::handle>(), py::arg("param"))
        .def("flat", &MemoryOrder::flat, py::arg("array"))
        .def("gather", &MemoryOrder::gather, py::arg("array"), py::arg("begin"), py::arg("out"))
        .def("scatter", &MemoryOrder::scatter, py::arg("values"), py::arg("begin"),
             py::arg("array"));
}

}  // namespace schuss::bindings
