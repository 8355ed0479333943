// Tests steps by rows without Python: makes random steps with gradients of some rows, dense ones
// and none, and the same steps with dense gradients only, and compares all arrays bit for bit.
//
//     rows [COUNT [SEED]]

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "engine/sharing.hpp"
#include "engine/step.hpp"
#include "rules/registry.hpp"
#include "runtime/subnormals.hpp"
#include "runtime/thread_pool.hpp"
#include "sweep/dispatch.hpp"

namespace {

namespace engine = schuss::engine;
namespace numbers = schuss::numbers;
namespace rules = schuss::rules;
namespace runtime = schuss::runtime;
namespace sweep = schuss::sweep;
using engine::Role;
using numbers::DType;
using Random = std::mt19937_64;

/// A number from 0 to before `end`.
std::size_t below(Random& random, std::size_t end) {
    return random() % end;
}

/// Whether an event of this probability happens.
bool happens(Random& random, double probability) {
    return static_cast<double>(below(random, 1 << 20)) < probability * (1 << 20);
}

/// The arrays of a case.
struct Formats {
    DType parameter = DType::float32, state = DType::float32;
    numbers::Master master = numbers::Master::none;
    std::uint8_t components = 1;
    bool at_random = false, average = false, copy = false;
};

/// What both optimizers of a case have.
struct Setting {
    std::size_t rows, row;  // their number, and the elements of one
    Formats formats;
    engine::Formula formula;
    engine::StepOptions options;
};

/// An optimizer of one parameter, in front of which another one rests.
class Optimizer {
  public:
    Optimizer(const Setting& setting, std::uint64_t seed) : setting_(setting) {
        const Formats& formats = setting.formats;
        const DType computed = numbers::compute_dtype(formats.parameter);
        add(Role::parameter, formats.parameter, formats.components);
        operands_[0].at_random = formats.at_random;
        add(Role::gradient, computed, formats.components);
        const bool has_row_states = setting.formula.is_row_wise() && setting.row > 1;
        for (const rules::State& state : setting.formula.rule().states) {
            if (has_row_states) break;
            add(Role::state, formats.state, state.nonnegative ? 1 : formats.components);
        }
        if (formats.master != numbers::Master::none) {
            add(Role::master, DType::bfloat16, 1);
            memory_.back().resize(elements() * numbers::size_of(formats.master));
            operands_.back().master = formats.master;
        }
        if (formats.average) add(Role::average, computed, formats.components);
        if (formats.copy) add(Role::copy, DType::bfloat16, formats.components);
        if (has_row_states) memory_.emplace_back(setting.rows * numbers::size_of(computed));
        for (std::size_t k = 0; k < operands_.size(); ++k) operands_[k].data = memory_[k].data();
        for (const engine::Operand& operand : operands_) {
            const auto size = static_cast<std::ptrdiff_t>(operand.item_size());
            strides_.push_back({static_cast<std::ptrdiff_t>(setting.row) * size, size});
        }
        for (std::size_t k = 0; k < operands_.size(); ++k) {
            operands_[k].strides = strides_[k].data();
        }
        fill(seed);
        std::vector<engine::Group> groups(1, {setting.formula});
        step_.configure(std::move(groups), {}, setting.options);
        step_.set_has_average(formats.average);
        step_.plan.items.push_back(engine::Item::resting(0, {37}, 1, {}));
        step_.plan.items.push_back(engine::Item::resting(0, shape(), formats.components, {}));
    }

    bool use_rows(bool is_lazy) {
        step_.rows.set_lazy(is_lazy);
        return step_.rows.lay_out(1, shape(), operands_, row_states());
    }

    /// A step with a dense gradient of the compute dtype.
    engine::Outcome step(double lr, double scale, const std::vector<std::byte>& gradient) {
        memory_[1] = gradient;
        operands_[1].data = memory_[1].data();
        return run(lr, scale, engine::Item(0, shape(), operands_, row_states()));
    }

    /// A step with a gradient of rows.
    engine::Outcome step(double lr, double scale, const engine::RowGradient& gradient) {
        step_.rows.set_gradient(1, gradient);
        const engine::Outcome outcome =
            run(lr, scale, engine::Item::resting(0, shape(), setting_.formats.components, {}));
        step_.rows.clear_gradients();
        return outcome;
    }

    /// A step in which the parameter rests.
    void rest(double lr) {
        std::vector<engine::Operand> operands;
        const auto average =
            std::find_if(operands_.begin(), operands_.end(),
                         [](const auto& operand) { return operand.role == Role::average; });
        if (average != operands_.end() && !step_.rows.are_pending(1)) {
            operands = {*average, operands_[0]};
            operands[0].role = Role::parameter;
            operands[1].role = Role::gradient;
            for (const engine::Operand& operand : operands_) {
                if (operand.role == Role::master) operands.push_back(operand);
            }
        }
        run(lr, 1, engine::Item::resting(0, shape(), setting_.formats.components, operands));
    }

    void flush() {
        step_.rows.prepare();
        step_.flush_rows();
    }
    void catch_up(const engine::RowOrder& order) {
        step_.rows.prepare();
        step_.catch_up(1, order);
    }

    /// Whether all arrays but the gradient have the same bits as another optimizer's. Any NaN
    /// equals any NaN.
    bool equals(const Optimizer& other) const {
        bool result = true;
        for (std::size_t k = 0; k < memory_.size(); ++k) {
            if (k == rules::gradient_operand) continue;
            const std::size_t at = first_difference(k, other);
            if (at == memory_[k].size()) continue;
            std::printf("  array %zu differs at byte %zu of %zu\n", k, at, memory_[k].size());
            result = false;
        }
        return result;
    }

  private:
    std::vector<std::size_t> shape() const { return {setting_.rows, setting_.row}; }
    std::size_t elements() const { return setting_.rows * setting_.row; }

    engine::RowStates row_states() {
        if (memory_.size() == operands_.size()) return {};
        return {memory_.back().data(), setting_.row};
    }

    /// The format of an array's elements, if they are numbers.
    std::optional<DType> number_format(std::size_t k) const {
        if (k == operands_.size()) return numbers::compute_dtype(setting_.formats.parameter);
        if (operands_[k].role == Role::master || operands_[k].block() > 1) return std::nullopt;
        return operands_[k].dtype;
    }

    /// The first byte of an element that differs; the number of bytes if none does.
    std::size_t first_difference(std::size_t k, const Optimizer& other) const {
        const std::optional<DType> dtype = number_format(k);
        const std::size_t step = dtype ? numbers::size_of(*dtype) : 1;
        for (std::size_t at = 0; at < memory_[k].size(); at += step) {
            const std::byte *a = memory_[k].data() + at, *b = other.memory_[k].data() + at;
            if (std::memcmp(a, b, step) == 0) continue;
            if (dtype && is_nan(a, *dtype) && is_nan(b, *dtype)) continue;
            return at;
        }
        return memory_[k].size();
    }

    static bool is_nan(const std::byte* element, DType dtype) {
        double value = 0;
        sweep::level().format(dtype).load[static_cast<int>(DType::float64)](element, &value, 1);
        return std::isnan(value);
    }

    void add(Role role, DType dtype, std::uint8_t components) {
        operands_.push_back({role, dtype, nullptr, nullptr, components});
        const std::size_t blocks =
            (elements() + numbers::block_of(dtype) - 1) / numbers::block_of(dtype);
        memory_.emplace_back(blocks * numbers::size_of(dtype) * components);
    }

    /// Fills the parameter with random numbers, among them some that a zero gradient may change:
    /// -0, and subnormal ones, which steps take for 0. States and masters begin with zeros.
    void fill(std::uint64_t seed) {
        Random random(seed);
        const DType dtype = setting_.formats.parameter;
        const auto components = setting_.formats.components;
        std::vector<float> values(elements() * components);
        std::vector<double> wide(values.size());
        for (std::size_t i = 0; i < values.size(); ++i) {
            const double exponent = static_cast<double>(below(random, 40)) - 30;
            wide[i] =
                std::ldexp(static_cast<double>(below(random, 2001)) / 1000 - 1, int(exponent));
            if (happens(random, 0.02)) wide[i] = -0.0;
            values[i] = static_cast<float>(wide[i]);
            if (!happens(random, 0.02)) continue;
            wide[i] = std::numeric_limits<double>::denorm_min();
            values[i] = std::numeric_limits<float>::denorm_min();
        }
        const bool is_wide = dtype == DType::float64;
        sweep::level().format(dtype).store(
            is_wide ? static_cast<const void*>(wide.data()) : values.data(), memory_[0].data(),
            values.size());
    }

    engine::Outcome run(double lr, double scale, engine::Item item) {
        step_.set_lrs(&lr, 1, step_.lr_version());
        step_.plan.items[1] = std::move(item);
        step_.plan.invalidate();
        step_.prepare(setting_.options.nonfinite);
        const engine::Outcome outcome = step_.run(scale);
        step_.record(outcome);
        return outcome;
    }

    Setting setting_;
    std::vector<engine::Operand> operands_;
    std::vector<std::vector<std::byte>> memory_;  // of the operands, and of the states of rows
    std::vector<std::vector<std::ptrdiff_t>> strides_;
    engine::Step step_;
};

/// A gradient of rows, and the dense one that it stands for.
struct Gradient {
    Gradient(Random& random, const Setting& setting, bool is_finite) {
        const std::size_t row = setting.row * setting.formats.components;
        const std::size_t count = below(random, 2 * setting.rows + 2);
        const std::size_t spread = 1 + below(random, setting.rows);
        computed = numbers::compute_dtype(setting.formats.parameter);
        dtype = happens(random, 0.3) ? DType::bfloat16 : computed;
        const std::size_t size = numbers::size_of(dtype);
        values.resize(count * row * size);
        std::vector<double> wide(count * row);
        std::vector<float> narrow(count * row);
        for (std::size_t i = 0; i < wide.size(); ++i) {
            wide[i] = std::ldexp(static_cast<double>(below(random, 2001)) / 1000 - 1,
                                 int(below(random, 12)) - 10);
            if (happens(random, 0.1)) wide[i] = happens(random, 0.5) ? 0.0 : -0.0;
            if (!is_finite && i == 0) wide[i] = std::numeric_limits<double>::infinity();
            narrow[i] = static_cast<float>(wide[i]);
        }
        const void* from =
            dtype == DType::float64 ? static_cast<const void*>(wide.data()) : narrow.data();
        sweep::level().format(dtype).store(from, values.data(), wide.size());
        for (std::size_t i = 0; i < count; ++i) {
            indices.push_back(static_cast<std::int64_t>(below(random, spread)));
        }
        order.sort(indices, setting.rows);
        if (computed == DType::float64) {
            make_dense<double>(setting.rows, row);
        } else {
            make_dense<float>(setting.rows, row);
        }
    }

    engine::RowGradient rows(const Setting& setting) const {
        return {.values = values.data(),
                .dtype = dtype,
                .row = setting.row * setting.formats.components,
                .order = &order};
    }

    template <typename T>
    void make_dense(std::size_t rows, std::size_t row) {
        const runtime::SubnormalsAreZero mode;
        std::vector<T> sums(rows * row), loaded(indices.size() * row);
        sweep::level().format(dtype).load[static_cast<int>(computed)](values.data(), loaded.data(),
                                                                      loaded.size());
        for (std::size_t i = 0; i < indices.size(); ++i) {
            T* const sum = sums.data() + static_cast<std::size_t>(indices[i]) * row;
            for (std::size_t k = 0; k < row; ++k) sum[k] = sum[k] + loaded[i * row + k];
        }
        dense.resize(sums.size() * sizeof(T));
        if (!dense.empty()) std::memcpy(dense.data(), sums.data(), dense.size());
    }

    DType dtype, computed;
    std::vector<std::byte> values, dense;
    std::vector<std::int64_t> indices;
    engine::RowOrder order;
};

engine::Formula random_formula(Random& random, const Formats& formats) {
    const char* const names[] = {"sgd",
                                 "momentum",
                                 "momentum_nesterov",
                                 "rmsprop",
                                 "rmsprop_centered_momentum",
                                 "adam",
                                 "adam_amsgrad",
                                 "adagrad",
                                 "rowwise_adagrad",
                                 "adadelta",
                                 "adamax",
                                 "nadam",
                                 "radam",
                                 "lion"};
    std::string name = names[below(random, std::size(names))];
    engine::FormulaOptions options;
    if (name == "rowwise_adagrad") {
        if (formats.components == 1) options.row_rule = name;
        name = "adagrad";
    }
    std::vector<double> others;
    for (const std::string_view key : rules::registry()[rules::find_rule(name)].hyperparameters) {
        if (key == "lr") continue;
        double value = 0;
        if (key.starts_with("beta") || key == "rho" || key == "alpha" || key == "momentum") {
            const double betas[] = {0.5, 0.9, 0.99, 0.999, 0};
            value = betas[below(random, 5)];
        }
        if (key.starts_with("eps")) value = happens(random, 0.8) ? 1e-8 : 0;
        if (key == "bias_correction") value = happens(random, 0.7) ? 1 : 0;
        if (key == "dampening") value = happens(random, 0.5) ? 0.9 : 0;
        others.push_back(value);
    }
    if (happens(random, 0.5)) options.weight_decay = happens(random, 0.2) ? 50 : 0.01;
    if (happens(random, 0.3)) options.decay = rules::Decay::coupled;
    options.maximize = happens(random, 0.1);
    if (formats.components == 1 && happens(random, 0.1)) options.bounds = {-0.5, 0.5};
    return {name, 0.1, others, options};
}

Setting random_setting(Random& random) {
    Formats formats;
    const std::size_t kind = below(random, 12);
    if (kind == 0) formats.parameter = formats.state = DType::float64;
    if (kind == 1) formats.parameter = DType::float16;
    if (kind == 2) formats.parameter = DType::bfloat16;
    if (kind == 3) formats.parameter = formats.state = DType::bfloat16;
    if (kind == 4) formats.state = DType::bfloat16;
    if (kind == 5) formats.components = 2;
    const bool has_blocks = kind == 6;
    if (has_blocks) formats.state = DType::square8;
    if (kind == 7 || kind == 8) formats.parameter = DType::bfloat16;
    if (kind == 7) formats.at_random = true;
    if (kind == 8) {
        formats.master = happens(random, 0.5) ? numbers::Master::float24 : numbers::Master::float32;
    }
    if (kind < 9) formats.average = happens(random, 0.3);
    const bool may_have_copy = formats.parameter == DType::float32 && formats.components == 1;
    formats.copy = may_have_copy && happens(random, 0.2);
    engine::StepOptions options;
    if (happens(random, 0.3)) options.clip_norm = 1;
    if (happens(random, 0.2) && formats.components == 1) options.clip_value = 0.25;
    options.average = 0.9;
    options.average_from_zero = happens(random, 0.5);
    options.seed = random();
    if (happens(random, 0.3)) options.nonfinite = engine::Nonfinite::skip;
    const std::size_t widths[] = {1, 2, 5, 16, 33, 64, 100, 700, 5000};
    std::size_t row = widths[below(random, happens(random, 0.1) ? 9 : 7)];
    if (has_blocks) row = 128 * (1 + below(random, 2));
    return {1 + below(random, 60), row, formats, random_formula(random, formats), options};
}

bool same(double a, double b) {
    return a == b || (std::isnan(a) && std::isnan(b));
}

/// Returns whether the rows have the bits of the dense steps.
bool run_case(std::uint64_t seed) {
    Random random(seed);
    const Setting setting = random_setting(random);
    const bool has_states = !setting.formula.rule().states.empty();
    if (setting.formats.state == DType::square8 && !has_states) return true;
    Optimizer dense(setting, seed), by_rows(setting, seed);
    runtime::set_threads(1 + below(random, 3));
    bool is_right = by_rows.use_rows(false);
    double lr = 0.1;
    // More steps than a history has room for, in a small table.
    const bool is_long = setting.rows * setting.row < 30 && happens(random, 0.1);
    const std::size_t steps = is_long ? 20'000 : 1 + below(random, happens(random, 0.1) ? 400 : 30);
    const double rest = is_long ? 0.9998 : happens(random, 0.5) ? 0 : 0.9;
    const double unscaled = happens(random, 0.3) ? 1 : 0.8;  // the probability in each step
    for (std::size_t t = 0; is_right && t < steps; ++t) {
        if (happens(random, 0.1))
            lr = happens(random, 0.1) ? happens(random, 0.5) ? 0.0 : -0.0 : lr * 0.7;
        double scale = happens(random, unscaled) ? 1 : happens(random, 0.5) ? -0.5 : 1e-40;
        if (happens(random, 0.003)) scale = std::numeric_limits<double>::quiet_NaN();
        const double kind = static_cast<double>(below(random, 1000)) / 1000;
        const Gradient gradient(random, setting, !happens(random, 0.02));
        if (kind < rest) {
            const std::vector<std::byte> nothing(gradient.dense.size());
            const Gradient empty = [&] {
                Gradient result = gradient;
                result.order.sort({}, setting.rows);
                return result;
            }();
            dense.step(lr, scale, nothing);
            by_rows.step(lr, scale, empty.rows(setting));
            continue;
        }
        const double other = static_cast<double>(below(random, 1000)) / 1000;
        if (other < 0.08) {
            dense.rest(lr);
            by_rows.rest(lr);
        } else if (other < 0.14) {
            dense.step(lr, scale, gradient.dense);
            by_rows.step(lr, scale, gradient.dense);
        } else if (other < 0.2) {
            by_rows.catch_up(gradient.order);
        } else if (other < 0.23) {
            by_rows.flush();
        } else {
            const engine::Outcome a = dense.step(lr, scale, gradient.dense);
            const engine::Outcome b = by_rows.step(lr, scale, gradient.rows(setting));
            is_right = is_right && a.skipped() == b.skipped() && a.clipped == b.clipped &&
                       same(a.grad_norm.value_or(0), b.grad_norm.value_or(0));
        }
    }
    by_rows.flush();
    is_right = by_rows.equals(dense) && is_right;
    if (is_right) return true;
    std::printf("wrong: seed %llu, rule %s%s, %zu rows of %zu, parameter %d, state %d\n",
                static_cast<unsigned long long>(seed), setting.formula.rule().name.data(),
                setting.formula.is_row_wise() ? " by row" : "", setting.rows, setting.row,
                int(setting.formats.parameter), int(setting.formats.state));
    return false;
}

}  // namespace

int main(int argc, char** argv) {
    const std::uint64_t count = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 200;
    const std::uint64_t first = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 0;
    engine::set_parallel_threshold(0);
    int wrong = 0;
    for (const sweep::Level* level : sweep::available_levels()) {
        sweep::use_level(level->name);
        for (std::uint64_t seed = first; seed < first + count; ++seed) {
            if (!run_case(seed)) ++wrong;
        }
        std::printf("%llu cases at %s\n", static_cast<unsigned long long>(count), level->name);
    }
    std::printf(wrong == 0 ? "all as the dense steps have it\n" : "%d wrong\n", wrong);
    return wrong == 0 ? 0 : 1;
}
