// Vectors of numbers, as wide as the registers of the instruction set: the compiler's own types,
// whose operators work element by element. Only for AVX2 and AVX-512: elsewhere the compiler's own
// loops are as fast. Included inside an anonymous namespace, after <immintrin.h>.
#pragma once

/// Vector<T, width>::Type holds width elements of type T.
template <typename T, int width>
struct Vector;

template <typename T>
struct Vector<T, 1> {
    using Type = T;
};

/// The number of elements that are computed at a time in type T: 1 without vectors.
template <typename T>
constexpr int width_of = 1;

#if defined(__AVX2__)
#define SCHUSS_HAS_VECTORS

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#else
constexpr int vector_bytes = 32;
#endif

using Floats [[gnu::vector_size(vector_bytes)]] = float;
using Doubles [[gnu::vector_size(vector_bytes)]] = double;
using Words [[gnu::vector_size(vector_bytes)]] = std::uint32_t;
using LongWords [[gnu::vector_size(vector_bytes)]] = std::uint64_t;
using HalfWords [[gnu::vector_size(vector_bytes / 2)]] = std::uint16_t;

template <>
constexpr int width_of<float> = vector_bytes / sizeof(float);
template <>
constexpr int width_of<double> = vector_bytes / sizeof(double);

/// float16 as it is in memory.
struct Float16s {
    HalfWords bits;
};
/// The float16 instructions depend neither on how subnormals are treated nor, with this argument,
/// on the rounding mode. The masks select all elements: without them GCC 12 warns about its own
/// header.
#if defined(__AVX512F__)
inline Floats widened(Float16s x) {
    return _mm512_maskz_cvtph_ps(0xffff, __builtin_bit_cast(__m256i, x));
}
inline Float16s narrowed(Floats x) {
    return __builtin_bit_cast(Float16s,
                              _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline Floats widened(Float16s x) {
    return _mm256_cvtph_ps(__builtin_bit_cast(__m128i, x));
}
inline Float16s narrowed(Floats x) {
    return __builtin_bit_cast(Float16s, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
#endif

/// The words of two vectors as their lower halves and their upper halves, in the same order.
using Halves [[gnu::vector_size(vector_bytes)]] = std::uint16_t;

#if defined(__AVX512F__)
/// The numbers 0, 1, 2... as halves, in which the compiler recognises constants.
inline Halves lane_numbers() {
    Halves result;
    for (int i = 0; i < vector_bytes / 2; ++i) result[i] = static_cast<std::uint16_t>(i);
    return result;
}
inline Halves selected(Halves x, Halves lanes, Halves y) {
    return __builtin_bit_cast(Halves, _mm512_permutex2var_epi16(__builtin_bit_cast(__m512i, x),
                                                                __builtin_bit_cast(__m512i, lanes),
                                                                __builtin_bit_cast(__m512i, y)));
}
inline Words first_words(Halves lower, Halves upper) {
    const Halves i = lane_numbers();
    return __builtin_bit_cast(Words, selected(lower, (i >> 1) | ((i & 1) << 5), upper));
}
inline Words last_words(Halves lower, Halves upper) {
    const Halves i = lane_numbers();
    return __builtin_bit_cast(Words, selected(lower, (i >> 1) | ((i & 1) << 5) | 16, upper));
}
inline Halves lower_halves(Words x, Words y) {
    return selected(__builtin_bit_cast(Halves, x), lane_numbers() << 1,
                    __builtin_bit_cast(Halves, y));
}
inline Halves upper_halves(Words x, Words y) {
    return selected(__builtin_bit_cast(Halves, x), (lane_numbers() << 1) | 1,
                    __builtin_bit_cast(Halves, y));
}
#else
inline Words first_words(Halves lower, Halves upper) {
    const __m256i x = __builtin_bit_cast(__m256i, lower), y = __builtin_bit_cast(__m256i, upper);
    return __builtin_bit_cast(Words, _mm256_permute2x128_si256(_mm256_unpacklo_epi16(x, y),
                                                               _mm256_unpackhi_epi16(x, y), 0x20));
}
inline Words last_words(Halves lower, Halves upper) {
    const __m256i x = __builtin_bit_cast(__m256i, lower), y = __builtin_bit_cast(__m256i, upper);
    return __builtin_bit_cast(Words, _mm256_permute2x128_si256(_mm256_unpacklo_epi16(x, y),
                                                               _mm256_unpackhi_epi16(x, y), 0x31));
}
inline Halves upper_halves(Words x, Words y) {
    const __m256i packed = _mm256_packus_epi32(__builtin_bit_cast(__m256i, x >> 16),
                                               __builtin_bit_cast(__m256i, y >> 16));
    return __builtin_bit_cast(Halves, _mm256_permute4x64_epi64(packed, 0xd8));
}
inline Halves lower_halves(Words x, Words y) {
    return upper_halves(x << 16, y << 16);
}
#endif

template <>
struct Vector<float, width_of<float>> {
    using Type = Floats;
};
template <>
struct Vector<double, width_of<double>> {
    using Type = Doubles;
};
template <>
struct Vector<Float16, width_of<float>> {
    using Type = Float16s;
};
#endif

/// A part of a vector: all elements, or the first of them.
struct All {};
struct First {
    std::size_t count;
};

template <typename Stored, int width>
constexpr std::size_t bytes_of(All) {
    return width * sizeof(Stored);
}
template <typename Stored, int width>
constexpr std::size_t bytes_of(First part) {
    return part.count * sizeof(Stored);
}

/// A part of a vector from memory. The other elements are zero.
template <int width, typename Stored, typename Part>
typename Vector<Stored, width>::Type read(const Stored* memory, Part part) {
    if constexpr (width == 1) return *memory;
    typename Vector<Stored, width>::Type vector = {};
    __builtin_memcpy(&vector, memory, bytes_of<Stored, width>(part));
    return vector;
}

template <int width, typename Stored, typename Part>
void write(Stored* memory, typename Vector<Stored, width>::Type vector, Part part) {
    if constexpr (width == 1) {
        *memory = vector;
    } else {
        __builtin_memcpy(memory, &vector, bytes_of<Stored, width>(part));
    }
}

#if defined(SCHUSS_HAS_VECTORS)
inline Floats magnitude(Floats x) {
    return __builtin_bit_cast(Floats, __builtin_bit_cast(Words, x) & 0x7fffffffu);
}
inline Doubles magnitude(Doubles x) {
    return __builtin_bit_cast(Doubles, __builtin_bit_cast(LongWords, x) & 0x7fffffffffffffffu);
}
#endif
