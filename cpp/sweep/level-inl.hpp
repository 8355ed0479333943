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

using numbers::DType;
using numbers::Formats;
using rules::Decay;
using rules::Names;

#include "numbers/numbers.hpp"
#include "numbers/random.hpp"
#include "rules/arithmetic.hpp"
#include "rules/decay.hpp"
#include "rules/gradient.hpp"
#include "rules/rate_only.hpp"
#define SCHUSS_RULE(name, ...)
#include "rules/rules.def"

constexpr int count(const Names& names) {
    int n = 0;
    while (names.at[n] != nullptr) ++n;
    return n;
}

template <bool first, typename A, typename B>
struct Choose {
    using Type = A;
};
template <typename A, typename B>
struct Choose<false, A, B> {
    using Type = B;
};

/// As rules::coefficients lays them out.
template <typename T>
struct Common {
    Gradient::Coefficients<T> gradient;
    WeightDecay::Coefficients<T> decay;
    T fine;
};

template <class Rule, typename T>
struct Coefficients : Common<T> {
    typename Rule::template Coefficients<T> rule;
};

/// The random bits of one state, element by element; none where they are not needed.
template <typename Stored>
struct Chance {
    explicit Chance(const Stream&) {}
    std::uint32_t bits() const { return 0; }
    void next() {}
};

template <>
struct Chance<Bfloat16> {
    explicit Chance(const Stream& stream)
        : random(key_of(stream.key, stream.first)),
          at(random.begin(static_cast<std::uint32_t>(stream.first))) {}
    std::uint32_t bits() const { return random.at(at); }
    void next() { at += RandomBits::stride; }

    RandomBits random;
    std::uint32_t at;
};

/// Body and tail are this one loop: the compiler makes both from it. It may, since the arrays never
/// overlap (the caller sees to that), and it must be told so.
template <class Rule, Decay decay, typename T, typename P, typename G, typename... S>
void loop(std::size_t count, const Coefficients<Rule, T>& c, P* p, const G* g, S*... state,
          Chance<S>... chance) {
    SCHUSS_NO_ALIASING
    for (std::size_t i = 0; i < count; ++i) {
        Element<T, P> parameter(p[i]);
        T gradient = loaded(g[i]);
        if constexpr (Rule::takes_gradients) gradient = Gradient::treated(gradient, c.gradient);
        WeightDecay::apply<decay>(static_cast<T&>(parameter), gradient, c.decay);
        Rule::update(static_cast<T&>(parameter), gradient,
                     static_cast<T&>(StateElement<T, S>(state[i], chance.bits()))..., c.rule);
        (chance.next(), ...);
    }
}

/// What run_in_pieces needs of a kernel: the same for gradients in T, and that of the update alone.
struct Parts {
    Kernel whole, update;
    Decay decay;
    int states;
    std::size_t state_size, coefficients_size;
};

template <typename T>
void decay_as(Decay decay, T& p, T& g, const WeightDecay::Coefficients<T>& c) {
    if (decay == Decay::coupled) WeightDecay::apply<Decay::coupled>(p, g, c);
    if (decay == Decay::decoupled) WeightDecay::apply<Decay::decoupled>(p, g, c);
}

/// A kernel whose scale or rate T cannot hold, a piece after the other: with the gradients scaled
/// before, and the update made small afterwards. So seldom that the loop shall not pay for it.
template <typename T, typename P, typename G>
[[gnu::noinline]] void run_in_pieces(std::byte* const* operands, std::size_t n,
                                     const void* coefficients, const Stream* streams,
                                     const Parts& parts) {
    constexpr std::size_t most = 256;
    Common<T> c;
    __builtin_memcpy(&c, coefficients, sizeof c);
    const bool apart = c.fine != 1;
    const Common<T> ordinary = {{1, 1, apart ? T(HUGE_VAL) : c.gradient.limit}, c.decay, 1};
    alignas(T) std::byte others[rules::max_coefficients * sizeof(T)];
    __builtin_memcpy(others, coefficients, parts.coefficients_size);
    __builtin_memcpy(others, &ordinary, sizeof ordinary);

    T gradient[most], parameter[most], update[most];
    for (std::size_t done = 0; done < n; done += most) {
        const std::size_t left = n - done < most ? n - done : most;
        P* const p = reinterpret_cast<P*>(operands[0]) + done;
        const G* const g = reinterpret_cast<const G*>(operands[1]) + done;
        for (std::size_t i = 0; i < left; ++i) {
            gradient[i] = Gradient::scaled(loaded(g[i]), c.gradient);
            if (!apart) continue;
            gradient[i] = Gradient::limited(gradient[i], c.gradient);
            parameter[i] = loaded(p[i]);
            update[i] = -T{0};  // what a sum leaves as it is, -0 too
            decay_as(parts.decay, parameter[i], gradient[i], c.decay);
        }
        std::byte* piece[rules::max_operands] = {reinterpret_cast<std::byte*>(p),
                                                 reinterpret_cast<std::byte*>(gradient)};
        if (apart) piece[0] = reinterpret_cast<std::byte*>(update);
        Stream stream[rules::max_states] = {};
        for (int k = 0; k < parts.states; ++k) {
            piece[2 + k] = operands[2 + k] + done * parts.state_size;
            if (parts.state_size < sizeof(T)) stream[k] = {streams[k].key, streams[k].first + done};
        }
        (apart ? parts.update : parts.whole)(piece, left, others, stream);
        for (std::size_t i = 0; apart && i < left; ++i) {
            store(p[i], parameter[i] + update[i] * c.fine);
        }
    }
}

template <class Rule, Decay decay, typename T, typename P, typename G, typename S>
[[gnu::noinline]] void kernel(std::byte* const* operands, std::size_t n, const void* coefficients,
                              const Stream* streams) {
    // A copy, so that no store through T* can be taken to change it.
    const auto c = *static_cast<const Coefficients<Rule, T>*>(coefficients);
    if constexpr (Rule::takes_gradients) {
        if (c.gradient.power != 1 || c.fine != 1) {
            static_assert(sizeof c <= rules::max_coefficients * sizeof(T));
            const Parts parts = {&kernel<Rule, decay, T, P, T, S>,
                                 &kernel<Rule, Decay::none, T, T, T, S>,
                                 decay,
                                 count(Rule::states),
                                 sizeof(S),
                                 sizeof c};
            return run_in_pieces<T, P, G>(operands, n, coefficients, streams, parts);
        }
    }
    P* const p = reinterpret_cast<P*>(operands[0]);
    const G* const g = reinterpret_cast<const G*>(operands[1]);
    const auto state = [operands](int i) { return reinterpret_cast<S*>(operands[2 + i]); };
    const auto chance = [streams](int i) { return Chance<S>(streams[i]); };
    constexpr int states = count(Rule::states);
    static_assert(states <= rules::max_states);
    if constexpr (states == 0) loop<Rule, decay, T, P, G>(n, c, p, g);
    if constexpr (states == 1) loop<Rule, decay, T, P, G, S>(n, c, p, g, state(0), chance(0));
    if constexpr (states == 2) {
        loop<Rule, decay, T, P, G, S, S>(n, c, p, g, state(0), state(1), chance(0), chance(1));
    }
    if constexpr (states == 3) {
        loop<Rule, decay, T, P, G, S, S, S>(n, c, p, g, state(0), state(1), state(2), chance(0),
                                            chance(1), chance(2));
    }
}

/// Fills the table of a rule. What is in the parameter's place of a rule that updates no parameters
/// has the format that is computed in; a rule without states needs no formats of states.
template <class Rule, Decay decay>
struct Combinations {
    template <typename P, typename G>
    static constexpr void add(Kernel* at, DType p, DType g) {
        if constexpr (Rule::updates_parameters || sizeof(P) == sizeof(float)) {
            constexpr bool in_half = Rule::updates_parameters && count(Rule::states) > 0;
            using Half = typename Choose<in_half, Bfloat16, float>::Type;
            at[numbers::kernel_index(Formats{p, g, DType::float32})] =
                &kernel<Rule, decay, float, P, G, float>;
            at[numbers::kernel_index(Formats{p, g, DType::bfloat16})] =
                &kernel<Rule, decay, float, P, G, Half>;
        }
    }

    template <typename P>
    static constexpr void add(Kernel* at, DType p) {
        add<P, float>(at, p, DType::float32);
        add<P, Float16>(at, p, DType::float16);
        add<P, Bfloat16>(at, p, DType::bfloat16);
    }

    static constexpr void fill(Kernels& kernels) {
        if constexpr (decay == Decay::none || Rule::updates_parameters) {
            Kernel* const at = kernels.at[static_cast<int>(decay)];
            at[0] = &kernel<Rule, decay, double, double, double, double>;
            add<float>(at, DType::float32);
            add<Float16>(at, DType::float16);
            add<Bfloat16>(at, DType::bfloat16);
        }
    }
};

template <class Rule>
constexpr Kernels kernels_of() {
    Kernels kernels = {};
    Combinations<Rule, Decay::none>::fill(kernels);
    Combinations<Rule, Decay::coupled>::fill(kernels);
    Combinations<Rule, Decay::decoupled>::fill(kernels);
    return kernels;
}

constexpr Kernels table[] = {
#define SCHUSS_RULE(name, ...) kernels_of<__VA_ARGS__>(),
#include "rules/rules.def"
};

/// A loop that reads but one array is as fast as its data are asked for: measured, 8 KB ahead makes
/// it 1.4 times as fast as the processor's own guesses. Whether there is anything does not matter.
inline void prefetch(const void* address) {
    __builtin_prefetch(
        reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(address) + 8192));
}

template <typename Stored, bool scaled>
bool survey(const void* elements, std::size_t count, std::size_t lane, double* lanes,
            double scale) {
    using T = decltype(loaded(Stored{}));
    constexpr std::size_t all = survey_lanes;
    const Stored* const x = static_cast<const Stored*>(elements);
    double sums[all];
    T zeros[all] = {};  // but NaN where an element is not finite
    for (std::size_t k = 0; k < all; ++k) sums[k] = lanes[k];
    const auto take = [&](Stored element, std::size_t k) {
        const T value = loaded(element);
        auto wide = static_cast<double>(value);
        if constexpr (scaled) wide = wide * scale;
        sums[k] = sums[k] + wide * wide;
        zeros[k] = zeros[k] + (value - value);
    };
    std::size_t i = 0;
    for (; lane % all != 0 && i < count; ++i, ++lane) take(x[i], lane);
    for (; i + all <= count; i += all) {
        prefetch(x + i);
        for (std::size_t k = 0; k < all; ++k) take(x[i + k], k);
    }
    for (std::size_t k = 0; i + k < count; ++k) take(x[i + k], k);
    bool finite = true;
    for (std::size_t k = 0; k < all; ++k) {
        lanes[k] = sums[k];
        finite = finite && zeros[k] == 0;
    }
    return finite;
}

template <typename Stored>
constexpr Format format(Store store) {
    return {&survey<Stored, false>, &survey<Stored, true>, store};
}

template <typename Stored>
void store_all(const void* from, void* to, std::size_t count) {
    const float* const x = static_cast<const float*>(from);
    Stored* const y = static_cast<Stored*>(to);
    SCHUSS_NO_ALIASING
    for (std::size_t i = 0; i < count; ++i) store(y[i], x[i]);
}

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
constinit const Level SCHUSS_LEVEL_TABLE = {
    SCHUSS_EXPANDED_TEXT(SCHUSS_LEVEL),
    compiled_features,
    table,
    {format<float>(nullptr), format<double>(nullptr), format<Float16>(&store_all<Float16>),
     format<Bfloat16>(&store_all<Bfloat16>)}};

}  // namespace schuss::sweep
