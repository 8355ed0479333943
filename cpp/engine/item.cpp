#include "engine/item.hpp"

#include <algorithm>

namespace schuss::engine {

Item::Item(std::size_t group_index, const std::vector<std::size_t>& shape,
           const std::vector<Operand>& operands, const RowStates& rows)
    : group(group_index), row_states(rows) {
    const Operand& parameter = operands[rules::parameter_operand];
    const Operand& gradient = operands[rules::gradient_operand];
    const std::size_t numbers_per_tile = tile_elements() / parameter.components;
    layout = Layout(shape, operands, std::max(numbers_per_tile, std::size_t{1}), rows.row);
    formats = {.parameter = parameter.dtype,
               .gradient = gradient.dtype,
               .state = numbers::compute_dtype(parameter.dtype),
               .rounds_parameter = parameter.at_random};
    for (std::size_t i = 0; i < operands.size(); ++i) {
        if (operands[i].role == Role::state) {
            formats.state = operands[i].dtype;
            formats.moduli = formats.moduli || operands[i].components < parameter.components;
        }
        if (operands[i].role == Role::master) formats.master = operands[i].master;
        data[i] = const_cast<std::byte*>(operands[i].data) + layout.offset(i);
    }
    gradient_order = MemoryOrder(shape, parameter, gradient);
    elements = layout.elements() * layout.components();
}

Item Item::resting(std::size_t group_index, const std::vector<std::size_t>& shape,
                   std::size_t components, const std::vector<Operand>& operands) {
    Item item = operands.empty() ? Item() : Item(group_index, shape, operands);
    item.group = group_index;
    item.gradient_order = MemoryOrder();
    item.elements = components;
    for (const std::size_t size : shape) item.elements *= size;
    item.rests = true;
    return item;
}

sweep::Call average_call(const Item& item, const Update& average, bool prefetches) {
    const numbers::DType computed = numbers::compute_dtype(item.formats.parameter);
    return average.call({computed, item.averaged(), computed}, prefetches);
}

}  // namespace schuss::engine
