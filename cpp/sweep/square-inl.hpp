// The square law of states in blocks of codes: an element is q * |q| times a unit, so that small
// elements have more codes. It is rounded at random so that its mean is exact: of u in [-1/2, 1/2),
// q = rint(sqrt(X + u*u - 1/4) + u) is one of the two integers around sqrt(X), and the mean of q*q
// is X. Included by level-inl.hpp in its anonymous namespace.
#pragma once

using numbers::Square8;

constexpr std::size_t square_block = sizeof Square8::codes;

template <bool nonnegative>
constexpr float largest_code = nonnegative ? 255 : 127;

/// Keeps what is computed of a small scale within the range of float32.
inline float lift_of(float scale) {
    return scale < 0x1p-64f ? 0x1p64f : 1.0f;
}

/// Rounds a number of small magnitude to an integer, ties to even.
inline float rounded(float x) {
    constexpr float aligned = 0x1.8p23f;
    return (x + aligned) - aligned;
}

/// A block of NaN has the scale NaN, so every element becomes NaN.
template <bool nonnegative>
void decode(const Square8& block, std::size_t count, float* values) {
    constexpr float square = largest_code<nonnegative> * largest_code<nonnegative>;
    const float lift = lift_of(block.scale), unit = block.scale * lift / square;
    const float drop = 1 / lift;
    for (std::size_t i = 0; i < count; ++i) {
        const std::int32_t q =
            nonnegative ? block.codes[i] : static_cast<std::int8_t>(block.codes[i]);
        values[i] = static_cast<float>(q * (q < 0 ? -q : q)) * unit * drop;
    }
}

template <bool nonnegative>
std::uint8_t code_of(float x, float lift, float inverse, std::uint32_t random) {
    const float magnitude = float_of(bits_of(x) & 0x7fffffffu);
    const float scaled = magnitude * lift * inverse;
    const float u = static_cast<float>(static_cast<std::int32_t>(random)) * 0x1p-32f;
    const float shifted = scaled + (u * u - 0.25f);
    float r = square_root(shifted > 0 ? shifted : 0.0f) + u;
    r = r < largest_code<nonnegative> ? r : largest_code<nonnegative>;
    if (nonnegative) r = x > 0 && r < 1 ? 1 : r;
    const auto q = static_cast<std::int32_t>(rounded(r));
    return static_cast<std::uint8_t>(!nonnegative && bits_of(x) >> 31 != 0 ? -q : q);
}

/// The block may cross a multiple of 2^32 in the stream. Elements past count have code 0.
template <bool nonnegative>
void encode(const float* values, std::size_t count, const Stream& stream, Square8& block) {
    constexpr std::uint32_t normal = 0x00800000u, infinity = 0x7f800000u, nan = 0x7fc00000u;
    constexpr float square = largest_code<nonnegative> * largest_code<nonnegative>;
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::uint32_t magnitude = bits_of(values[i]) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
    }
    __builtin_memset(block.codes, 0, sizeof block.codes);
    block.scale = float_of(largest < normal ? 0 : largest < infinity ? largest : nan);
    if (largest < normal || largest >= infinity) return;
    const float lift = lift_of(block.scale), inverse = square / (block.scale * lift);
    for (std::size_t i = 0; i < count;) {
        const std::uint64_t first = stream.first + i;
        const RandomBits random(key_of(stream.key, first));
        std::uint32_t counter = random.begin(static_cast<std::uint32_t>(first));
        const std::uint64_t left = (std::uint64_t{1} << 32) - static_cast<std::uint32_t>(first);
        const std::size_t end = left < count - i ? i + left : count;
        for (; i < end; ++i, counter += RandomBits::stride) {
            block.codes[i] = code_of<nonnegative>(values[i], lift, inverse, random.all(counter));
        }
    }
}

/// The elements of blocks, from the first of a block on.
inline void decode_state(bool nonnegative, const std::byte* blocks, std::size_t count, float* to) {
    const auto* block = reinterpret_cast<const Square8*>(blocks);
    for (std::size_t i = 0; i < count; i += square_block, ++block) {
        const std::size_t here = smallest(count - i, square_block);
        (nonnegative ? decode<true> : decode<false>)(*block, here, to + i);
    }
}

inline void encode_state(bool nonnegative, const float* values, std::size_t count,
                         const Stream& stream, std::byte* blocks) {
    auto* block = reinterpret_cast<Square8*>(blocks);
    for (std::size_t i = 0; i < count; i += square_block, ++block) {
        const std::size_t here = smallest(count - i, square_block);
        const Stream at = {stream.key, stream.first + i};
        (nonnegative ? encode<true> : encode<false>)(values + i, here, at, *block);
    }
}
