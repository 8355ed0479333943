// The definition of a rule: the update of one element, written once for every number format and
// instruction set.
//
// A rule is a struct with
//     states              the arrays that it keeps for each parameter
//     hyperparameters     the names of its hyperparameters, in the order of Hyper; each step sets
//                         the first, which is lr, or beta for an average
//     takes_gradients     whether the second array is a gradient, which is scaled and clipped first
//     updates_parameters  whether the first array is a parameter, which may have any number format
//     Hyper               the hyperparameters; all members are doubles
//     Coefficients<T>     the values that the loop uses; all members have type T
//     origins             for each coefficient, the hyperparameter that decides whether T can hold
//                         it: "a+b" if the sum of two decides, "" if none does. A coefficient of
//                         "lr" may be too small for T. It is then multiplied by a power of two, and
//                         the coefficient after it, if its origin is "fine", becomes the inverse;
//                         without one, the loop multiplies the update by the inverse
//     coefficients(h, t)  computes the coefficients of step t in double; the caller casts them to T
//     update(p, g, state..., c)
//                         p, g and the states have the type V, which is T or a complex number of T;
//                         states that are nonnegative have the type T
// update is plain scalar arithmetic in the order of schuss.reference. Every operation rounds, so
// this order decides the bits.
//
// A rule of rows, which keeps one number for each row of a parameter, is such a struct without
// states, and has
//     update_row(s, mean_square, c)
//                         updates the number of the row, given the mean of the squares of its
//                         gradient, and sets the coefficients that differ between rows
// Another rule has the update of a row of a single element, with that number as its state and with
// the same first coefficients.
//
// Each file that compiles the rules includes them inside an anonymous namespace: the linker must
// never choose the AVX-512 copy of a rule for an older processor. Therefore the rule files include
// nothing themselves. This header has the types that they share with the rest of the library.
#pragma once

namespace schuss::rules {

/// Up to eleven names. Unused entries are null.
struct Names {
    const char* at[12];
};

/// The arrays of one update: the parameter, its gradient, and up to three states.
inline constexpr int max_states = 3;
inline constexpr int parameter_operand = 0;
inline constexpr int gradient_operand = 1;
inline constexpr int first_state_operand = 2;
inline constexpr int max_operands = first_state_operand + max_states;

/// Limit on the coefficients of a rule, including those that all rules have.
inline constexpr int max_coefficients = 16;

/// An array that a rule keeps for each parameter.
struct State {
    const char* name;
    bool nonnegative = false;  // whether no element is ever less than 0
};

/// The states of a rule. Unused entries have no name.
struct States {
    State at[max_states + 1];
};

/// How weight decay enters a step: added to the gradient, or shrinking the parameter. A step
/// without weight decay is decoupled: its factor is 1.
enum class Decay { coupled, decoupled };
inline constexpr int decay_count = 2;

/// Which value of a coefficient, among those of several steps, makes the update of a parameter
/// largest if the gradient is zero. Where the value makes no difference, it is `largest`.
enum class Extreme : bool { largest, least };

/// Whether zero gradients never change the states of a rule: it says so, or has none.
template <class Rule>
inline constexpr bool keeps_states = Rule::states.at[0].name == nullptr;
template <class Rule>
    requires(Rule::keeps_states)
inline constexpr bool keeps_states<Rule> = true;

/// How the updates of a parameter fall while its gradients are zero.
struct Fall {
    double ratio;  // of an update to the one before it, at most
    double floor;  // what a divisor never falls below, if it has the scale of the root of a state
    bool only_to_zero = false;  // whether the ratio says nothing until the update is zero
};

}  // namespace schuss::rules
