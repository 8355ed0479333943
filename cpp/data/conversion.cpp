#include "data/conversion.hpp"

#include <algorithm>

#include "data/sharing.hpp"
#include "runtime/subnormals.hpp"
#include "sweep/dispatch.hpp"

namespace schuss::data {
namespace {

using numbers::DType;

constexpr std::size_t elements_per_task = std::size_t{1} << 16;

void narrow(const void* from, void* to, std::size_t count) {
    const auto* const wide = static_cast<const double*>(from);
    auto* const out = static_cast<float*>(to);
    for (std::size_t i = 0; i < count; ++i) out[i] = static_cast<float>(wide[i]);
}

void copy_half(const void* from, void* to, std::size_t count) {
    std::copy_n(static_cast<const std::byte*>(from), count * sizeof(numbers::Float16),
                static_cast<std::byte*>(to));
}

bool is_computed(DType dtype) {
    return numbers::compute_dtype(dtype) == dtype;
}

/// The loop of a conversion; nullptr if there is none.
sweep::Convert loop_of(DType from, DType to) {
    if (from == DType::float64 && to == DType::float32) return &narrow;
    if (is_computed(to)) return sweep::level().format(from).load[static_cast<int>(to)];
    if (from == to) return &copy_half;
    return from == DType::float32 ? sweep::level().format(to).store : nullptr;
}

}  // namespace

bool can_convert(DType from, DType to) {
    return loop_of(from, to) != nullptr;
}

void convert(DType from, const std::byte* values, DType to, std::byte* out,
             std::size_t count) noexcept {
    const sweep::Convert loop = loop_of(from, to);
    const std::size_t size = numbers::size_of(from), out_size = numbers::size_of(to);
    const std::size_t tasks = (count + elements_per_task - 1) / elements_per_task;
    run_tasks(tasks, sharing_of(count * (size + out_size)), [&](std::size_t i, std::size_t) {
        const runtime::SubnormalsAreKept mode;
        const std::size_t begin = i * elements_per_task;
        loop(values + begin * size, out + begin * out_size,
             std::min(elements_per_task, count - begin));
    });
}

}  // namespace schuss::data
