// The square root of vectors, which is rounded to nearest: by the instruction, or without the
// divider. Included by level-inl.hpp in its anonymous namespace.
#pragma once

#if defined(__AVX512F__)
inline Floats instruction_root(Floats x) {
    return _mm512_maskz_sqrt_ps(0xffff, x);
}
inline Doubles instruction_root(Doubles x) {
    return _mm512_maskz_sqrt_pd(0xff, x);
}

/// What a root by multiplications needs of each type.
template <typename V>
struct Multiplication;

template <>
struct Multiplication<Floats> {
    static constexpr int iterations = 1;
    static constexpr float least = 0x1p-80f, up = 0x1p60f, down = 0x1p-30f;
    static Floats inverse_root(Floats x) { return _mm512_maskz_rsqrt14_ps(0xffff, x); }
    static Floats fused(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
    static Floats or_itself(Floats root, Floats x) {
        return _mm512_mask_add_ps(root, _mm512_fpclass_ps_mask(x, 0x0e), x, x);
    }
};

template <>
struct Multiplication<Doubles> {
    static constexpr int iterations = 2;
    static constexpr double least = 0x1p-900, up = 0x1p200, down = 0x1p-100;
    static Doubles inverse_root(Doubles x) { return _mm512_maskz_rsqrt14_pd(0xff, x); }
    static Doubles fused(Doubles a, Doubles b, Doubles c) { return _mm512_fmadd_pd(a, b, c); }
    static Doubles or_itself(Doubles root, Doubles x) {
        return _mm512_mask_add_pd(root, _mm512_fpclass_pd_mask(x, 0x0e), x, x);
    }
};

/// Newton's iterations for the root g and half its reciprocal h, and a last step that rounds once
/// (Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", 1990).
/// A small number is scaled first: the error of its root would be subnormal.
template <typename V>
V multiplied_root(V x) {
    using M = Multiplication<V>;
    const V half = filled<V>(0.5f);
    const auto is_small = x < M::least;
    const V y = is_small ? x * M::up : x;
    const V estimate = M::inverse_root(y);
    V g = y * estimate, h = estimate * half;
    for (int i = 0; i < M::iterations; ++i) {
        const V r = M::fused(-g, h, half);
        g = M::fused(g, r, g);
        h = M::fused(h, r, h);
    }
    const V root = M::fused(M::fused(-g, g, y), h, g);
    return M::or_itself(is_small ? root * M::down : root, x);  // 0 and infinity
}

template <typename V>
V root_of(V x) {
    return multiplies_for_roots ? multiplied_root(x) : instruction_root(x);
}
inline Floats square_root(Floats x) {
    return root_of(x);
}
inline Doubles square_root(Doubles x) {
    return root_of(x);
}
#elif defined(__AVX2__)
inline Floats square_root(Floats x) {
    return _mm256_sqrt_ps(x);
}
inline Doubles square_root(Doubles x) {
    return _mm256_sqrt_pd(x);
}
#endif
