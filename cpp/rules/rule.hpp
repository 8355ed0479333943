// What a rule is: one element's update, written once for every number format and instruction set.
//
// A rule is a struct with
//     states            the names of the arrays it keeps beside the parameter, as users see them
//     hyperparameters   the names of its hyperparameters, in the order of Hyper; the first,
//                       lr or an average's beta, is given with each step
//     takes_gradients   whether what stands beside the parameter is a gradient, to be scaled and
//                       clipped first
//     updates_parameters  whether what it writes is a parameter, and so may have any number format
//     Hyper             their values: doubles and nothing else
//     Coefficients<T>   what the loop needs of them: values of type T and nothing else
//     origins           for each of these, the hyperparameter that decides whether T can hold it;
//                       "" where none does
//     coefficients(h,t) makes these in double for step t; they are cast to T once, by the caller
//     update(p, g, state..., c)
// update is plain scalar arithmetic, in exactly the order of schuss.reference: every operation
// rounds on its own, so the order decides the bits.
//
// The rule files are included inside an anonymous namespace of each file that compiles them: an
// AVX-512 copy of a rule must never be visible to a linker that serves an older processor. So they
// include nothing themselves, and what they share with other rooms stands here.
#pragma once

namespace schuss::rules {

/// Up to eight names; the unused rest are null.
struct Names {
    const char* at[9];
};

/// How weight decay enters a step: not at all, added to the gradient, or shrinking the parameter.
enum class Decay { none, coupled, decoupled };
inline constexpr int decay_count = 3;

/// The arrays of one update: the parameter, its gradient, and at most three states; and so many
/// coefficients at most, with those that every rule has.
inline constexpr int max_states = 3;
inline constexpr int parameter_operand = 0;
inline constexpr int gradient_operand = 1;
inline constexpr int first_state_operand = 2;
inline constexpr int max_coefficients = 16;
inline constexpr int max_operands = first_state_operand + max_states;

}  // namespace schuss::rules
