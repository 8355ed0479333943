// The square law of states in blocks of codes of one byte: an element is q * |q| times a unit, so
// that the codes of small elements are close to each other. It is rounded at random so that its
// mean is exact: for u uniform in [-1/2, 1/2], q = rint(sqrt(X + u*u - 1/4) + u) is one of the two
// integers around sqrt(X), and the mean of q*q is X. Included inside an anonymous namespace.
#pragma once

using numbers::Square8;

constexpr std::size_t square_block = sizeof Square8::codes;

/// The square of the largest code, 127 or 255, less what the roundings of an element can add.
template <bool nonnegative>
constexpr float largest_square = nonnegative ? 65024.9375f : 16128.984375f;

/// A block with a smaller scale is multiplied by `lift` before it is encoded: the inverse of its
/// unit would be infinite.
constexpr float smallest_unlifted = 0x1p-40f, lift = 0x1p86f;

/// A larger scale is set to this one, and so are larger elements: the largest code of such a block
/// would decode to infinity.
constexpr float largest_scale = 0x1.ffffd6p127f;

/// A block with a smaller scale has a unit that may be subnormal.
constexpr float smallest_plain = 0x1p-109f;

/// x if it is larger, otherwise y, also if one is NaN.
inline float larger(float x, float y) {
    return x > y ? x : y;
}

/// The larger of x and 1 where y is positive, elsewhere 0. Scaled like `with_code`.
inline float at_least_one(float x, float y) {
    return y > 0 ? larger(x, 0x1p32f) : 0;
}

/// x with its sign bit set where that of y is set.
inline float with_sign_of(float x, float y) {
    return float_of(bits_of(x) | (bits_of(y) & 0x80000000u));
}

inline float signed_integer(std::uint32_t bits) {
    return static_cast<float>(static_cast<std::int32_t>(bits));
}

#if defined(SCHUSS_HAS_VECTORS)
inline std::uint32_t largest_of(__m256i x) {
    __m128i most = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
    most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1));
    return static_cast<std::uint32_t>(_mm_cvtsi128_si32(most));
}

// The masks select all elements, as in vectors.hpp.
#if defined(__AVX512F__)
inline std::uint32_t largest_of(Words x) {
    const auto low = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7);
    const auto high = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
    return largest_of(__builtin_bit_cast(__m256i, low > high ? low : high));
}
inline Floats larger(Floats x, Floats y) {
    return _mm512_maskz_max_ps(0xffff, x, y);
}
inline Floats at_least_one(Floats x, Floats y) {
    const __mmask16 positive = _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GT_OQ);
    return _mm512_maskz_max_ps(positive, x, _mm512_set1_ps(0x1p32f));
}
inline Floats signed_integer(Words bits) {
    return _mm512_maskz_cvtepi32_ps(0xffff, __builtin_bit_cast(__m512i, bits));
}
template <bool nonnegative>
Floats load_codes(const std::uint8_t* codes) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    return _mm512_maskz_cvtepi32_ps(0xffff, nonnegative
                                                ? _mm512_maskz_cvtepu8_epi32(0xffff, bytes)
                                                : _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
}
inline void store_codes(std::uint8_t* codes, Floats with_codes) {
    const __m512i bits = __builtin_bit_cast(__m512i, with_codes);
    const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, bits);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), bytes);
}
#else
inline std::uint32_t largest_of(Words x) {
    return largest_of(__builtin_bit_cast(__m256i, x));
}
inline Floats larger(Floats x, Floats y) {
    return _mm256_max_ps(x, y);
}
inline Floats at_least_one(Floats x, Floats y) {
    const Floats positive = _mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_GT_OQ);
    return _mm256_and_ps(positive, larger(x, filled<Floats>(0x1p32f)));
}
inline Floats signed_integer(Words bits) {
    return _mm256_cvtepi32_ps(__builtin_bit_cast(__m256i, bits));
}
template <bool nonnegative>
Floats load_codes(const std::uint8_t* codes) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    return _mm256_cvtepi32_ps(nonnegative ? _mm256_cvtepu8_epi32(bytes)
                                          : _mm256_cvtepi8_epi32(bytes));
}
inline void store_codes(std::uint8_t* codes, Floats with_codes) {
    const __m128i first =
        _mm_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i low = _mm256_shuffle_epi8(__builtin_bit_cast(__m256i, with_codes),
                                            _mm256_broadcastsi128_si256(first));
    const __m128i bytes =
        _mm_unpacklo_epi32(_mm256_castsi256_si128(low), _mm256_extracti128_si256(low, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(codes), bytes);
}
#endif
inline Floats with_sign_of(Floats x, Floats y) {
    return float_of(bits_of(x) | (bits_of(y) & 0x80000000u));
}
#endif

template <bool nonnegative, typename V>
V decoded(V code, V unit) {
    if constexpr (nonnegative) {
        return code * code * unit;
    } else {
        return code * magnitude(code) * unit;
    }
}

/// A number of which the lowest byte is the code. inverse: 2^64 divided by the unit. random: 32
/// random bits as a signed integer. Everything is 2^32 times as large as in the formula above, so
/// that the random number needs no factor.
template <bool nonnegative, typename V>
V with_code(V x, V inverse, V random) {
    constexpr float quarter = 0x1p62f, integers = 0x1.8p23f * 0x1p32f;
    const V shifted = random * random - quarter;
    if constexpr (nonnegative) {
        // A positive element has no code 0: an update may divide by its root. (Code 1 still decodes
        // to 0 where that is subnormal, below a scale of 2^-110.) The root is NaN where
        // the sum is negative.
        return at_least_one(square_root(x * inverse + shifted) + random, x) + integers;
    } else {
        const V square = larger(magnitude(x) * inverse + shifted, V{});
        return with_sign_of(square_root(square) + random, x) + integers;
    }
}
