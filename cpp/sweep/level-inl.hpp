// The one loop. Each isa/*.cpp defines SCHUSS_LEVEL and includes this file, and is compiled with
// its own flags; so nothing here may be visible to the linker but the level's table: all lies in an
// anonymous namespace, and no standard template is used.

#include <math.h>

#include "sweep/level.hpp"

#define SCHUSS_TEXT(x) #x
#define SCHUSS_EXPANDED_TEXT(x) SCHUSS_TEXT(x)
#define SCHUSS_JOIN(a, b) a##b
#define SCHUSS_EXPANDED_JOIN(a, b) SCHUSS_JOIN(a, b)

#if defined(__clang__)
#define SCHUSS_NO_ALIASING _Pragma("clang loop vectorize(assume_safety)")
#else
#define SCHUSS_NO_ALIASING _Pragma("GCC ivdep")
#endif

namespace schuss::sweep {
namespace {

using rules::Decay;
using rules::Names;

#include "numbers/numbers.hpp"
#include "rules/arithmetic.hpp"
#include "rules/decay.hpp"
#define SCHUSS_RULE(name, ...)
#include "rules/rules.def"

/// As rules::coefficients lays them out.
template <class Rule, typename T>
struct Coefficients {
    WeightDecay::Coefficients<T> decay;
    typename Rule::template Coefficients<T> rule;
};

/// Body and tail are this one loop: the compiler makes both from it. It may, since the arrays never
/// overlap (the caller sees to that), and it must be told so.
template <class Rule, Decay decay, typename T, typename... State>
void loop(std::size_t count, const Coefficients<Rule, T>& c, T* p, const T* g, State*... state) {
    SCHUSS_NO_ALIASING
    for (std::size_t i = 0; i < count; ++i) {
        Element<T, T> parameter(p[i]);
        T gradient = g[i];
        WeightDecay::apply<decay>(static_cast<T&>(parameter), gradient, c.decay);
        Rule::update(static_cast<T&>(parameter), gradient,
                     static_cast<T&>(Element<T, State>(state[i]))..., c.rule);
    }
}

constexpr int count(const Names& names) {
    int n = 0;
    while (names.at[n] != nullptr) ++n;
    return n;
}

template <class Rule, Decay decay, typename T>
void kernel(void* const* operands, std::size_t n, const void* coefficients) {
    // A copy, so that no store through T* can be taken to change it.
    const auto c = *static_cast<const Coefficients<Rule, T>*>(coefficients);
    T* const p = static_cast<T*>(operands[0]);
    const T* const g = static_cast<const T*>(operands[1]);
    const auto state = [operands](int i) { return static_cast<T*>(operands[2 + i]); };
    constexpr int states = count(Rule::states);
    static_assert(states <= rules::max_states);
    if constexpr (states == 0) loop<Rule, decay>(n, c, p, g);
    if constexpr (states == 1) loop<Rule, decay>(n, c, p, g, state(0));
    if constexpr (states == 2) loop<Rule, decay>(n, c, p, g, state(0), state(1));
    if constexpr (states == 3) loop<Rule, decay>(n, c, p, g, state(0), state(1), state(2));
}

template <class Rule>
constexpr Kernels kernels = {{
    {&kernel<Rule, Decay::none, float>, &kernel<Rule, Decay::none, double>},
    {&kernel<Rule, Decay::coupled, float>, &kernel<Rule, Decay::coupled, double>},
    {&kernel<Rule, Decay::decoupled, float>, &kernel<Rule, Decay::decoupled, double>},
}};

constexpr Kernels table[] = {
#define SCHUSS_RULE(name, ...) kernels<__VA_ARGS__>,
#include "rules/rules.def"
};

// A feature's macro expands to 1 where the compiler may use it, and to itself where not.
constexpr std::uint64_t compiled_features = 0
#define SCHUSS_FEATURE(name, macro, ...)                                                   \
    | (SCHUSS_EXPANDED_TEXT(macro)[0] == '1' ? std::uint64_t{1} << unsigned(Feature::name) \
                                             : std::uint64_t{0})
#include "sweep/features.def"
    ;

}  // namespace

#define SCHUSS_LEVEL_TABLE SCHUSS_EXPANDED_JOIN(level_, SCHUSS_LEVEL)
extern const Level SCHUSS_LEVEL_TABLE;
constinit const Level SCHUSS_LEVEL_TABLE = {SCHUSS_EXPANDED_TEXT(SCHUSS_LEVEL), compiled_features,
                                            table};

}  // namespace schuss::sweep
