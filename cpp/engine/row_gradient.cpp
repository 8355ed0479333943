#include "engine/row_gradient.hpp"

namespace schuss::engine {

void RowGradient::sum(std::size_t k, std::size_t begin, std::size_t elements,
                      const sweep::Level& level, std::byte* to) const noexcept {
    const sweep::Format& loops = level.format(dtype);
    const RowOrder::Places given = order->places(k);
    const std::byte* const first = values + begin * loops.size;
    const auto kind = static_cast<int>(computed);
    if (is_sum) return loops.load[kind](first + *given.at * row * loops.size, to, elements);
    loops.sum_rows[kind](first, row * loops.size, given.at, given.count, elements, to);
}

}  // namespace schuss::engine
