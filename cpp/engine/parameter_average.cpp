#include "engine/parameter_average.hpp"

namespace schuss::engine {

Update ParameterAverage::next(double beta, bool from_zero) noexcept {
    if (is_empty() && !from_zero) beta = 0;
    const auto add_step = [beta](double weight, auto zero) {
        const auto one_minus_beta = static_cast<decltype(zero)>(1 - beta);
        return weight + static_cast<double>(one_minus_beta) * (1 - weight);
    };
    weights_ = {add_step(weights_.first, 0.0F), add_step(weights_.second, 0.0)};
    // A product with 0 would keep a NaN or an infinity.
    Formula& formula = beta == 0 ? first_average_ : average_;
    formula.set_per_step(beta);
    return formula.update(1, no_limit);
}

void ParameterAverage::correct_bias(numbers::DType dtype, std::byte* elements,
                                    std::size_t count) const noexcept {
    const auto divide = [count](auto* typed, auto weight) {
        for (std::size_t i = 0; i < count; ++i) typed[i] /= weight;
    };
    if (dtype == numbers::DType::float32) {
        divide(reinterpret_cast<float*>(elements), static_cast<float>(weights_.first));
    } else {
        divide(reinterpret_cast<double*>(elements), weights_.second);
    }
}

}  // namespace schuss::engine
