#include "engine/plan.hpp"

#include <algorithm>

#include "engine/subnormals.hpp"

namespace schuss::engine {

Coefficients::Coefficients(const rules::Coefficients& values) : float64_(values) {
    for (std::size_t i = 0; i < values.size(); ++i) float32_[i] = static_cast<float>(values[i]);
}

const void* Coefficients::as(numbers::Number number) const {
    if (number == numbers::Number::float32) return float32_.data();
    return float64_.data();
}

void Plan::run(const sweep::Kernels& kernels, rules::Decay decay,
               const Coefficients& coefficients) {
    std::size_t scratch_bytes = 0;
    for (const Item& item : items) {
        scratch_bytes = std::max(scratch_bytes, item.layout.scratch_bytes());
    }
    scratch_.reserve(scratch_bytes);  // nothing from here on can fail

    const SubnormalsAreZero mode;
    for (const Item& item : items) {
        const sweep::Kernel kernel = kernels.of(decay, item.number);
        const void* const values = coefficients.as(item.number);
        for (std::size_t tile = 0; tile < item.layout.tiles(); ++tile) {
            item.layout.sweep(tile, item.data, kernel, values, scratch_);
        }
    }
}

}  // namespace schuss::engine
