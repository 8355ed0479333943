// A rule with the values of its hyperparameters, and the coefficients that it has in one step.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "numbers/dtype.hpp"
#include "numbers/wide.hpp"
#include "rules/registry.hpp"
#include "sweep/level.hpp"

namespace schuss::engine {

/// The clipping limit of a step that does not clip.
inline constexpr double no_limit = std::numeric_limits<double>::infinity();

/// The coefficients of one step, cast once to each dtype that updates are computed in.
class Coefficients {
  public:
    Coefficients() = default;

    /// The coefficients of step t; see rules::coefficients.
    Coefficients(const rules::RuleInfo& rule, const double* hyperparameters, double weight_decay,
                 double t, double limit);

    /// Multiplies the gradients of the step by a scale.
    void set_scale(const numbers::Wide& scale);

    /// Sets the scale of a step whose gradients are zeros. Of the scale set before, only the sign
    /// matters to them, and whether it is finite.
    void set_zero_gradient();

    /// Whether the values of one rule are the same in a compute dtype, bit for bit.
    bool equal(const Coefficients& other, numbers::DType dtype) const;

    struct Unrepresentable {
        std::size_t index;
        double value;
    };

    /// The first coefficient that the dtype rounds to zero or infinity although it is neither.
    std::optional<Unrepresentable> first_unrepresentable(rules::Decay decay,
                                                         numbers::DType dtype) const;

    /// Whether the squares of the gradients stay as they are.
    bool keep_squares(numbers::DType dtype) const;

    /// Whether decoupled weight decay leaves the parameters as they are.
    bool keep_parameters(numbers::DType dtype) const;

    /// Those of a rule that only transforms gradients.
    Coefficients of_gradient() const;

    /// Lets such a rule multiply by the weight decay, and nothing else.
    void scale_by_weight_decay();

    /// The values in a compute dtype, as the kernels read them.
    const void* as(numbers::DType dtype) const;

    /// Whether a kernel uses all of them: neither the power of the scale nor `fine` is needed.
    bool are_ordinary(numbers::DType dtype) const;

  private:
    rules::Coefficients float64_ = {};
    std::array<float, std::tuple_size_v<rules::Coefficients>> float32_ = {};
    std::size_t count_ = 0;
    rules::Rates rates_ = {};  // the coefficients that may be too small for a dtype
};

/// The lowest and the highest value of the parameters.
struct Bounds {
    double low = -no_limit, high = no_limit;

    bool operator==(const Bounds&) const = default;
    bool exist() const { return low > -no_limit || high < no_limit; }

    /// The first bound that the compute dtype rounds to zero, or that excludes all its numbers.
    std::optional<double> first_unrepresentable(numbers::DType dtype) const;

    /// The first bound that excludes all numbers up to the largest.
    std::optional<double> first_beyond(double largest) const;
};

/// A rule, ready for one step.
struct Update {
    const rules::RuleInfo* rule = nullptr;
    const sweep::Kernels* kernels = nullptr;
    std::optional<std::size_t> row_rule;  // the index of the rule of rows, if it is row-wise
    rules::Decay decay = rules::Decay::decoupled;
    bool maximize = false;
    Bounds bounds;
    Coefficients coefficients;

    /// Multiplies the gradients of the step by a scale, and by -1 to maximize.
    void set_scale(const numbers::Wide& scale) {
        coefficients.set_scale(maximize ? numbers::Wide(-1) * scale : scale);
    }

    /// The update of arrays in these formats. It refers to the coefficients.
    sweep::Call call(const numbers::Formats& formats, bool prefetches) const {
        return call(*kernels, formats, prefetches);
    }

    /// The same by the kernels of another rule that has the same coefficients.
    sweep::Call call(const sweep::Kernels& of, const numbers::Formats& formats,
                     bool prefetches) const;
};

/// What the parameters of one group have besides their rule.
struct FormulaOptions {
    rules::Decay decay = rules::Decay::decoupled;
    double weight_decay = 0;
    bool maximize = false;      // whether a step goes along the gradient, not against it
    Bounds bounds;              // of the parameters
    std::string row_rule = {};  // updates rows of several elements; "": they are as other elements
};

/// A rule with the values of its hyperparameters. The ranges of the values are the caller's to
/// check.
class Formula {
  public:
    /// per_step: the first hyperparameter, which each step may change: lr, or the beta of an
    /// average. others: the other hyperparameters in the order of the rule. Throws
    /// std::invalid_argument if no rule has that name.
    Formula(std::string_view rule, double per_step, const std::vector<double>& others = {},
            const FormulaOptions& options = {});

    const rules::RuleInfo& rule() const { return rules::registry()[index_]; }
    double per_step() const { return values_[0]; }
    const Bounds& bounds() const { return options_.bounds; }

    /// Whether the states of the rule have one number for each row.
    bool is_row_wise() const { return row_index_.has_value(); }
    void set_per_step(double value) { values_[0] = value; }

    /// The update of step t, with a gradient scale of 1. limit: the largest magnitude of an element
    /// of the scaled gradient.
    Update update(std::int64_t t, double limit) const noexcept;

    /// A hyperparameter that a dtype cannot represent.
    struct Misfit {
        std::string_view hyperparameter;
        double value;
        double coefficient;  // the value that the step derives from it
        numbers::DType dtype;
        std::size_t group = 0;
    };

    /// The first misfit of an update that this formula made for the same limit.
    std::optional<Misfit> first_misfit(const Update& update, double limit,
                                       numbers::DType dtype) const;

  private:
    std::size_t index_;
    std::optional<std::size_t> row_index_;
    FormulaOptions options_;
    std::vector<double> values_;
};

}  // namespace schuss::engine
