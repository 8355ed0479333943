#include "data/ordered_copy.hpp"

#include <algorithm>

#include "data/sharing.hpp"

namespace schuss::data {
namespace {

/// Threads share parts of at least this many elements, which read whole cache lines.
constexpr std::size_t elements_per_task = std::size_t{1} << 15;

/// Calls copy(begin, count) for parts of the elements, the first of which is `begin`.
template <class Copy>
void share(const engine::MemoryOrder& order, std::size_t item_size, std::size_t begin,
           std::size_t count, const Copy& copy) noexcept {
    const std::size_t part = std::max(elements_per_task, order.whole_lines());
    const std::size_t parts = (count + part - 1) / part;
    run_tasks(parts, sharing_of(2 * count * item_size), [&](std::size_t i, std::size_t) {
        copy(begin + i * part, std::min(part, count - i * part));
    });
}

}  // namespace

void gather_in_order(const engine::MemoryOrder& order, std::size_t item_size,
                     const std::byte* array, std::size_t begin, std::size_t count,
                     std::byte* to) noexcept {
    share(order, item_size, begin, count, [&](std::size_t first, std::size_t part) {
        order.gather(array, first, part, to + (first - begin) * item_size);
    });
}

void scatter_in_order(const engine::MemoryOrder& order, std::size_t item_size,
                      const std::byte* from, std::size_t begin, std::size_t count,
                      std::byte* array) noexcept {
    share(order, item_size, begin, count, [&](std::size_t first, std::size_t part) {
        order.scatter(from + (first - begin) * item_size, first, part, array);
    });
}

}  // namespace schuss::data
