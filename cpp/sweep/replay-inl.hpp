// Many steps with zero gradients of a few elements, which stay in registers meanwhile. Included by
// level-inl.hpp in its anonymous namespace.
#pragma once

/// The unsigned integers with the bits of T, or of a vector of T.
template <typename T, int width>
struct BitsOf;
template <>
struct BitsOf<float, 1> {
    using Type = std::uint32_t;
};
template <>
struct BitsOf<double, 1> {
    using Type = std::uint64_t;
};

#if defined(SCHUSS_HAS_VECTORS)
template <>
struct BitsOf<float, width_of<float>> {
    using Type = Words;
};
template <>
struct BitsOf<double, width_of<double>> {
    using Type = LongWords;
};
#endif

#if defined(__AVX512F__)
template <typename Bits>
bool are_zero(Bits bits) {
    const auto all = __builtin_bit_cast(__m512i, bits);
    return _mm512_test_epi64_mask(all, all) == 0;
}
#elif defined(__AVX2__)
template <typename Bits>
bool are_zero(Bits bits) {
    const auto all = __builtin_bit_cast(__m256i, bits);
    return _mm256_testz_si256(all, all) != 0;
}
#else
template <typename Bits>
bool are_zero(Bits bits) {
    return bits == 0;
}
#endif

/// The bytes of each array that are updated at a time: those of many elements, and of a few. Loops
/// over vectors are unrolled, so that these can stay in registers. Single elements are left to the
/// compiler, which makes vectors of them.
#if defined(SCHUSS_HAS_VECTORS)
constexpr std::size_t few = vector_bytes, many = 4 * few;
#define SCHUSS_UNROLLED_IF_VECTORS _Pragma("GCC unroll 4")
#else
constexpr std::size_t few = 64, many = few;
#define SCHUSS_UNROLLED_IF_VECTORS SCHUSS_NO_UNROLLING
#endif

/// Vectors of parameters and of their states.
template <class Rule, typename T, int vectors>
struct Elements {
    using V = typename Vector<T, width_of<T>>::Type;
    using Bits = typename BitsOf<T, width_of<T>>::Type;
    static constexpr int states = count(Rule::states);

    V at[1 + states][vectors];

    V& parameter(int k) { return at[0][k]; }

    /// Calls f with the states of vector k.
    template <typename F>
    [[gnu::always_inline]] auto with_states(int k, const F& f) {
        if constexpr (states == 0) return f();
        if constexpr (states == 1) return f(at[1][k]);
        if constexpr (states == 2) return f(at[1][k], at[2][k]);
        if constexpr (states == 3) return f(at[1][k], at[2][k], at[3][k]);
    }

    [[gnu::always_inline]] bool has_states_of(const Elements& other) const {
        Bits different = {};
        for (int s = 1; s <= states; ++s) {
            SCHUSS_UNROLLED_IF_VECTORS for (int k = 0; k < vectors; ++k) {
                different |=
                    __builtin_bit_cast(Bits, at[s][k]) ^ __builtin_bit_cast(Bits, other.at[s][k]);
            }
        }
        return are_zero(different);
    }
};

/// The steps that are still to be made: those from one of the runs on, without its first ones.
struct Ahead {
    const ZeroSteps *run, *end;
    std::uint64_t made;
};

/// Makes the next steps of Elements, at most `most`. Calls make(e, scalars, c, zero, n) for n
/// steps with the same coefficients, as numbers and as vectors. The elements e may stay in
/// registers.
template <class Rule, typename T, int vectors, typename Make>
[[gnu::always_inline]] inline void advance(void* elements, Ahead& ahead, std::uint64_t most,
                                           const Make& make) {
    using Row = Elements<Rule, T, vectors>;
    Row e = *static_cast<Row*>(elements);
    while (most > 0 && ahead.run != ahead.end) {
        const auto& scalars = *static_cast<const Coefficients<Rule, T>*>(ahead.run->coefficients);
        const auto c = filled<typename Row::V>(scalars);
        const std::uint64_t left = ahead.run->steps - ahead.made, n = left < most ? left : most;
        make(e, scalars, c, GradientTransform::transform(typename Row::V{}, c.gradient), n);
        most -= n;
        ahead = n < left ? Ahead{ahead.run, ahead.end, ahead.made + n}
                         : Ahead{ahead.run + 1, ahead.end, 0};
    }
    *static_cast<Row*>(elements) = e;
}

template <class Rule, Decay decay, typename T, int vectors>
void full_steps(void* elements, Ahead& ahead, std::uint64_t most) {
    const auto make = [](auto& e, const auto&, const auto& c, auto zero,
                         std::uint64_t n) __attribute__((always_inline)) {
        for (; n > 0; --n) {
            SCHUSS_UNROLLED_IF_VECTORS for (int k = 0; k < vectors; ++k) {
                auto g = zero;
                WeightDecay::apply<decay>(e.parameter(k), g, c.decay);
                e.with_states(k, [&](auto&... state) __attribute__((always_inline)) {
                    Rule::update(e.parameter(k), g, state..., c.rule);
                });
            }
        }
    };
    advance<Rule, T, vectors>(elements, ahead, most, make);
}

/// Updates states whose parameters are at rest.
template <class Rule, typename V, class C, typename... States>
[[gnu::always_inline]] inline void rest(V g, const C& c, States&... states) {
    if constexpr (requires { Rule::rest(g, states..., c); }) {
        Rule::rest(g, states..., c);
    } else {
        V unused = {};
        Rule::update(unused, g, states..., c);
    }
}

/// Makes steps in which the parameters do nothing but decay.
template <class Rule, typename T, int vectors>
void resting_steps(void* elements, Ahead& ahead, std::uint64_t most) {
    const auto make = [](auto& e, const auto& scalars, const auto& c, auto zero,
                         std::uint64_t n) __attribute__((always_inline)) {
        const auto each = [&](const auto& f) __attribute__((always_inline)) {
            SCHUSS_UNROLLED_IF_VECTORS for (int k = 0; k < vectors; ++k) f(k);
        };
        const auto step = [&](int k) __attribute__((always_inline)) {
            e.with_states(k, [&](auto&... state) __attribute__((always_inline)) {
                rest<Rule>(zero, c.rule, state...);
            });
        };
        std::uint64_t left = e.states > 0 ? n : 0, unseen = 1;  // steps before the next comparison
        auto before = e;
        while (left > 0) {
            left -= unseen;
            for (; unseen > 0; --unseen) {
                before = e;
                each(step);
            }
            if (left == 0 || e.has_states_of(before)) break;
            unseen = left < 64 ? left : 64;
        }
        if (scalars.decay.decay_factor == 1) return;
        for (; n > 0; --n) {
            each([&](int k) __attribute__((always_inline)) {
                e.parameter(k) = e.parameter(k) * c.decay.decay_factor;
            });
        }
    };
    advance<Rule, T, vectors>(elements, ahead, most, make);
}

/// Updates q, which is 0, in place of a parameter. Its magnitude then bounds the updates.
template <class Rule, typename V, class C, typename... States>
[[gnu::always_inline]] inline void bound(V& q, V g, const C& c, States&... states) {
    if constexpr (requires { Rule::bound(q, g, states..., c); }) {
        Rule::bound(q, g, states..., c);
    } else {
        Rule::update(q, g, states..., c);
    }
}

/// What the steps ahead may change: anything, no parameter but by its decay, or nothing.
enum class Outlook { anything, decay, nothing };

/// The outlook of some elements by a bound on their updates (see engine::RestBound).
template <class Rule, typename T>
Outlook outlook(const void* elements, std::size_t bytes, const void* rest) {
    using One = Elements<Rule, T, 1>;
    using V = typename One::V;
    const auto* const all = static_cast<const V*>(elements);
    const std::size_t vectors = bytes / sizeof(V);
    const auto& bounds = *static_cast<const Rest<T>*>(rest);
    Coefficients<Rule, T> scalars;
    __builtin_memcpy(&scalars, bounds.coefficients, sizeof scalars);
    const auto c = filled<V>(scalars);
    const V reach = filled<V>(bounds.reach), lowest = filled<V>(bounds.lowest);
    bool changes = bounds.lowest > 0;
    SCHUSS_NO_UNROLLING for (std::size_t k = 0; k < vectors; ++k) {
        One now;
        for (std::size_t s = 0; s <= One::states; ++s) now.at[s][0] = all[s * vectors + k];
        One next = now;
        V q = {};
        next.with_states(0, [&](auto&... state) __attribute__((always_inline)) {
            bound<Rule>(q, V{}, c.rule, state...);
        });
        const V p = now.parameter(0), size = magnitude(p), update = magnitude(q);
        const auto is_zero = __builtin_bit_cast(typename One::Bits, p) == 0;
        const auto is_large = (size >= lowest) & (p != 0);  // compares a subnormal number as 0
        // A NaN compares as false: such an element never rests.
        const auto rests =
            ((update * reach < size) & is_large) | ((update == 0) & (is_large | is_zero));
        const V moves = rests ? V{} : filled<V>(T{1});
        if (!are_zero(__builtin_bit_cast(typename One::Bits, moves))) return Outlook::anything;
        changes = changes || !next.has_states_of(now) ||
                  !(rules::keeps_states<Rule> || now.has_states_of({}));
    }
    return changes ? Outlook::decay : Outlook::nothing;
}

/// How some elements of a rule are replayed: `bytes` of each array.
struct Way {
    std::size_t bytes;
    void (*full_steps)(void* elements, Ahead& ahead, std::uint64_t most);
    void (*resting_steps)(void* elements, Ahead& ahead, std::uint64_t most);
    Outlook (*outlook)(const void* elements, std::size_t bytes, const void* rest);
};

/// Makes all steps. From time to time, it tests whether the elements are at rest.
inline void make_steps(const Way& way, void* elements, Ahead ahead, const Looks* rest) {
    constexpr std::uint64_t between_looks = 16, never = ~std::uint64_t{0};
    way.full_steps(elements, ahead, rest == nullptr ? never : rest->first);
    while (ahead.run != ahead.end) {
        const Outlook seen = way.outlook(elements, way.bytes, rest);
        if (seen == Outlook::nothing) return;
        if (seen == Outlook::decay) {
            way.resting_steps(elements, ahead, rest->at_rest);
        } else {
            way.full_steps(elements, ahead, between_looks);
        }
    }
}

inline void copy_bytes(const std::byte* from, std::byte* to, std::size_t bytes) {
    std::size_t i = 0;
    for (; i + few <= bytes; i += few) __builtin_memcpy(to + i, from + i, few);
    if (i < bytes) __builtin_memcpy(to + i, from + i, bytes - i);
}

/// Replays `bytes` of each array. Where fewer are left than are updated at a time, zeros follow.
[[gnu::noinline]] inline void replay_arrays(const Way& of_many, const Way& of_few,
                                            std::byte* const* arrays, int count, std::size_t bytes,
                                            const Ahead& ahead, const Looks* rest) {
    alignas(cache_line) std::byte elements[(1 + rules::max_states) * many];
    for (std::size_t i = 0; i < bytes;) {
        const Way& way = bytes - i > 2 * few ? of_many : of_few;
        const std::size_t n = smallest(way.bytes, bytes - i);
        if (n < way.bytes) __builtin_memset(elements, 0, sizeof elements);
        for (int k = 0; k < count; ++k) copy_bytes(arrays[k] + i, elements + k * way.bytes, n);
        make_steps(way, elements, ahead, rest);
        for (int k = 0; k < count; ++k) copy_bytes(elements + k * way.bytes, arrays[k] + i, n);
        i += n;
    }
}

template <class Rule, Decay decay, typename T, std::size_t bytes>
constexpr Way way() {
    constexpr int vectors = bytes / sizeof(typename Vector<T, width_of<T>>::Type);
    Way result = {bytes, &full_steps<Rule, decay, T, vectors>, nullptr, nullptr};
    if constexpr (decay == Decay::decoupled) {  // coupled decay moves all parameters
        result.resting_steps = &resting_steps<Rule, T, vectors>;
        result.outlook = &outlook<Rule, T>;
    }
    return result;
}

/// See Replay.
template <class Rule, Decay decay, typename T>
void replay(std::byte* const* operands, std::size_t count, const ZeroSteps* runs,
            std::size_t run_count, const Looks* rest) {
    static constexpr Way of_many = way<Rule, decay, T, many>(), of_few = way<Rule, decay, T, few>();
    std::byte* arrays[rules::max_operands] = {operands[rules::parameter_operand]};
    constexpr int states = Elements<Rule, T, 1>::states;
    for (int s = 0; s < states; ++s) arrays[1 + s] = operands[rules::first_state_operand + s];
    replay_arrays(of_many, of_few, arrays, 1 + states, count * sizeof(T),
                  {runs, runs + run_count, 0}, rest);
}

template <class Rule>
constexpr void add_replays(Kernels& kernels) {
    if constexpr (Rule::updates_parameters) {
        const auto add = [&kernels]<Decay decay, typename T>() {
            kernels.replay[static_cast<int>(decay)][static_cast<int>(compute_dtype<T>)] =
                &replay<Rule, decay, T>;
        };
        add.template operator()<Decay::coupled, float>();
        add.template operator()<Decay::coupled, double>();
        add.template operator()<Decay::decoupled, float>();
        add.template operator()<Decay::decoupled, double>();
    }
}
