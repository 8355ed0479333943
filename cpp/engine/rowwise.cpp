#include "engine/rowwise.hpp"

#include <algorithm>
#include <cstring>

namespace schuss::engine {
namespace {

/// A gradient that the rule sees otherwise is written to a buffer of this many elements.
constexpr std::size_t buffered_elements = 512;
using Buffer = double[buffered_elements];

Update sum(std::string_view rule, const sweep::Level& level, const Coefficients& coefficients) {
    Update update;
    update.kernels = &level.rules[rules::find_rule(rule)];
    update.coefficients = coefficients;
    return update;
}

}  // namespace

RowwiseUpdate::RowwiseUpdate(const Layout& layout, const Pass& pass)
    : layout_(layout),
      states_(pass.row_states),
      dtype_(numbers::compute_dtype(pass.update.formats.parameter)),
      update_row_(
          rules::registry()[*pass.formula->row_rule].update_row[static_cast<std::size_t>(dtype_)]),
      pass_(pass) {
    const Update& update = *pass.formula;
    std::memcpy(coefficients_, update.coefficients.as(dtype_),
                rules::max_coefficients * numbers::size_of(dtype_));
    pass_.row_states = {};
    pass_.update = update.call(pass.level.rules[*update.row_rule], pass.update.formats,
                               pass.update.prefetches);
    pass_.update.coefficients = coefficients_;
    const bool decays = update.decay == rules::Decay::coupled;
    if (!decays && update.coefficients.keep_squares(dtype_)) return;
    Coefficients coefficients = update.coefficients.of_gradient();
    seen_ = sum("accumulation_first", pass.level, coefficients);
    if (!decays) return;
    coefficients.scale_by_weight_decay();
    decay_ = sum("accumulation", pass.level, coefficients);
}

void RowwiseUpdate::begin_row(std::byte* const* at, std::uint64_t begin) {
    const double mean = sum_of_squares(at) / static_cast<double>(states_.row);
    std::byte* const state = states_.data + begin / states_.row * numbers::size_of(dtype_);
    update_row_(state, mean, coefficients_);
}

double RowwiseUpdate::sum_of_squares(std::byte* const* at) const {
    double lanes[sweep::stats_lanes] = {};
    if (!seen_) {
        pass_.level.format(pass_.update.formats.gradient)
            .sum_squares(at[rules::gradient_operand], states_.row, 0, lanes, 1);
        return sweep::sum_of_lanes(lanes);
    }
    Buffer seen;
    for (std::size_t begin = 0; begin < states_.row; begin += buffered_elements) {
        const std::size_t count = std::min(states_.row - begin, buffered_elements);
        transform(at, begin, count, seen);
        pass_.level.format(dtype_).sum_squares(seen, count, 0, lanes, 1);
    }
    return sweep::sum_of_lanes(lanes);
}

/// Writes elements of the gradient of a row as the rule sees them: scaled, clipped and with weight
/// decay.
void RowwiseUpdate::transform(std::byte* const* at, std::size_t begin, std::size_t count,
                              void* to) const {
    const auto from = [&](std::size_t k) { return at[k] + layout_.operand(k).bytes(begin); };
    const auto add = [&](const Update& update, numbers::DType dtype, std::byte* values) {
        std::byte* const operands[] = {static_cast<std::byte*>(to), values};
        pass_.level.run(update.call({dtype_, dtype, dtype_}, false), operands, count, nullptr);
    };
    const numbers::Formats& formats = pass_.update.formats;
    add(*seen_, formats.gradient, from(rules::gradient_operand));
    if (!decay_) return;
    std::byte* const parameter = from(rules::parameter_operand);
    if (!layout_.has_master()) return add(*decay_, formats.parameter, parameter);
    float values[buffered_elements];
    const auto kind = static_cast<std::size_t>(formats.master);
    pass_.level.join[kind](parameter, from(layout_.master()), values, count);
    add(*decay_, dtype_, reinterpret_cast<std::byte*>(values));
}

}  // namespace schuss::engine
