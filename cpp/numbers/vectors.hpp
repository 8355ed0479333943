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

/// The 16-bit formats as they are in memory.
struct Float16s {
    HalfWords bits;
};
struct Bfloat16s {
    HalfWords bits;
};

/// The 16-bit halves of words, and words with zeros above 16 bits. GCC 12 compiles
/// __builtin_convertvector to several instructions.
///
/// The float16 instructions depend neither on how subnormals are treated nor, with this argument,
/// on the rounding mode. The masks select all elements: without them GCC 12 warns about its own
/// header.
#if defined(__AVX512F__)
inline Words words(HalfWords x) {
    return __builtin_bit_cast(Words,
                              _mm512_maskz_cvtepu16_epi32(0xffff, __builtin_bit_cast(__m256i, x)));
}
inline HalfWords lower_halves(Words x) {
    return __builtin_bit_cast(HalfWords,
                              _mm512_maskz_cvtepi32_epi16(0xffff, __builtin_bit_cast(__m512i, x)));
}
inline Floats widened(Float16s x) {
    return _mm512_maskz_cvtph_ps(0xffff, __builtin_bit_cast(__m256i, x));
}
inline Float16s narrowed(Floats x) {
    return __builtin_bit_cast(Float16s,
                              _mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT));
}
#else
inline Words words(HalfWords x) {
    return __builtin_bit_cast(Words, _mm256_cvtepu16_epi32(__builtin_bit_cast(__m128i, x)));
}
inline HalfWords lower_halves(Words x) {
    const __m256i all = __builtin_bit_cast(__m256i, x);
    return __builtin_bit_cast(
        HalfWords, _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1)));
}
inline Floats widened(Float16s x) {
    return _mm256_cvtph_ps(__builtin_bit_cast(__m128i, x));
}
inline Float16s narrowed(Floats x) {
    return __builtin_bit_cast(Float16s, _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
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
struct Vector<std::uint32_t, width_of<float>> {
    using Type = Words;
};
template <>
struct Vector<Float16, width_of<float>> {
    using Type = Float16s;
};
template <>
struct Vector<Bfloat16, width_of<float>> {
    using Type = Bfloat16s;
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

/// first, first + 1, ...
template <int width>
typename Vector<std::uint32_t, width>::Type counted(std::uint32_t first) {
    typename Vector<std::uint32_t, width>::Type result = {};
    if constexpr (width == 1) {
        result = first;
    } else {
        for (int k = 0; k < width; ++k) result[k] = first + static_cast<std::uint32_t>(k);
    }
    return result;
}
