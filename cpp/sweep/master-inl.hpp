// Parameters in bfloat16 that are rounded otherwise than to nearest: those whose missing bits are
// kept, as a master, and those that are rounded at random. Included by level-inl.hpp in its
// anonymous namespace.
#pragma once

/// A bfloat16 number and the bits that it lacks: int16, or the upper 8 of them as int8.
template <Master master>
struct Low;
template <>
struct Low<Master::float32> {
    using Type = std::int16_t;
    static constexpr int shift = 0;
};
template <>
struct Low<Master::float24> {
    using Type = std::int8_t;
    static constexpr int shift = 8;
};

template <Master master>
float joined(Bfloat16 high, typename Low<master>::Type low) {
    const std::int32_t rest = std::int32_t{low} * (1 << Low<master>::shift);
    // A 0 never has a rest below 0, unless the user wrote it; their sum would be a NaN.
    const bool is_written_zero = (high.bits & 0x7fff) == 0 && low < 0;
    const auto kept = static_cast<std::uint32_t>(is_written_zero ? 0 : rest);
    return float_of((std::uint32_t{high.bits} << 16) + kept);
}

/// Rounds to the nearest bfloat16, ties away from zero. The rest may be negative, and is 0 for
/// infinities and NaN. random: 32 random bits, by whose upper 8 a number is rounded to 24 bits
/// first.
template <Master master>
void split(float x, std::uint32_t random, Bfloat16& high, typename Low<master>::Type& low) {
    std::uint32_t bits = bits_of(x);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    const bool is_finite = magnitude < 0x7f800000u;
    const std::uint32_t quiet = magnitude > 0x7f800000u ? 0x40 : 0;
    if (master == Master::float24) bits = (bits + (random >> 24)) & ~0xffu;
    const std::uint32_t nearest = (bits + 0x8000u) >> 16;
    const auto rest = static_cast<std::int32_t>(bits - (nearest << 16)) >> Low<master>::shift;
    high = {static_cast<std::uint16_t>(is_finite ? nearest : bits_of(x) >> 16 | quiet)};
    low = static_cast<typename Low<master>::Type>(is_finite ? rest : 0);
}

#if defined(SCHUSS_HAS_VECTORS)
/// The elements that are converted at a time: two vectors of words.
constexpr std::size_t at_a_time = 2 * width_of<float>;

template <typename V>
V read_as(const void* memory) {
    V result;
    __builtin_memcpy(&result, memory, sizeof result);
    return result;
}
template <typename V>
void write_as(void* memory, V x) {
    __builtin_memcpy(memory, &x, sizeof x);
}

struct WordPair {
    Words first, last;
};

inline WordPair read_words(const float* memory) {
    return {read_as<Words>(memory), read_as<Words>(memory + width_of<float>)};
}
inline void write_words(float* memory, const WordPair& x) {
    write_as(memory, x.first);
    write_as(memory + width_of<float>, x.last);
}

/// The words of upper halves and of signed lower halves that are added to them; see `joined`.
inline WordPair sum(Halves upper, Halves lower) {
    const auto is_negative = lower >> 15 != 0, is_zero = upper << 1 == 0;
    const Halves rest = is_negative & is_zero ? Halves{} : lower;
    const Halves borrowed = upper - (rest >> 15);  // the sign of the lower half, extended
    return {first_words(rest, borrowed), last_words(rest, borrowed)};
}
inline Halves read_low(const std::int16_t* low) {
    return read_as<Halves>(low);
}
inline Halves read_low(const std::int8_t* low) {
    using Bytes [[gnu::vector_size(vector_bytes / 2)]] = std::int8_t;
    using SignedHalves [[gnu::vector_size(vector_bytes)]] = std::int16_t;
    const auto wide = __builtin_convertvector(read_as<Bytes>(low), SignedHalves);
    return __builtin_bit_cast(Halves, wide) << 8;
}
#endif

/// Widens bfloat16 numbers. With vectors, it takes less than half the time of the compiler's loop.
inline void widen(const Bfloat16* from, std::size_t count, float* to) {
    std::size_t i = 0;
#if defined(SCHUSS_HAS_VECTORS)
    for (; i + at_a_time <= count; i += at_a_time) {
        const Halves upper = read_as<Halves>(from + i);
        write_words(to + i, {first_words(Halves{}, upper), last_words(Halves{}, upper)});
    }
#endif
    for (; i < count; ++i) to[i] = loaded(from[i]);
}

template <Master master>
void join_all(const void* high, const void* low, float* out, std::size_t count) {
    const auto* const h = static_cast<const Bfloat16*>(high);
    const auto* const l = static_cast<const typename Low<master>::Type*>(low);
    std::size_t i = 0;
#if defined(SCHUSS_HAS_VECTORS)
    for (; i + at_a_time <= count; i += at_a_time) {
        write_words(out + i, sum(read_as<Halves>(h + i), read_low(l + i)));
    }
#endif
    for (; i < count; ++i) out[i] = joined<master>(h[i], l[i]);
}

#if defined(SCHUSS_HAS_VECTORS)
/// Of numbers that are finite.
inline void split(WordPair bits, const WordPair&, Bfloat16* high, std::int16_t* low) {
    write_as(high, upper_halves(bits.first + 0x8000u, bits.last + 0x8000u));
    write_as(low, lower_halves(bits.first, bits.last));
}
inline void split(WordPair bits, const WordPair& random, Bfloat16* high, std::int8_t* low) {
    bits.first += random.first >> 24;
    bits.last += random.last >> 24;
    write_as(high, upper_halves(bits.first + 0x8000u, bits.last + 0x8000u));
    auto* const bytes = reinterpret_cast<std::uint8_t*>(low);
    store_codes(bytes, float_of(bits.first >> 8));
    store_codes(bytes + width_of<float>, float_of(bits.last >> 8));
}

inline Words rounded_at_random(Words bits, Words random) {
    const Floats x = float_of(bits);
    return x != x ? bits | 0x400000u : bits + (random >> 16);
}
#endif

/// Calls store(i, bits) for each element, or store_vector(i, bits) for two vectors, with 32
/// random bits of each index. The indices may cross a multiple of 2^32.
template <typename Store, typename StoreVector>
void with_random_bits(const Stream& stream, std::size_t count, [[maybe_unused]] bool in_vectors,
                      const Store& store, [[maybe_unused]] const StoreVector& store_vector) {
    for (std::size_t i = 0; i < count;) {
        const std::uint64_t first = stream.first + i;
        const RandomBits random(key_of(stream.key, first));
        std::uint32_t counter = random.begin(static_cast<std::uint32_t>(first));
        const std::uint64_t left = (std::uint64_t{1} << 32) - static_cast<std::uint32_t>(first);
        const std::size_t end = left < count - i ? i + left : count;
#if defined(SCHUSS_HAS_VECTORS)
        constexpr std::uint32_t width = width_of<float>;
        Words lanes;
        for (std::uint32_t k = 0; k < width; ++k) lanes[k] = k * RandomBits::stride;
        for (; in_vectors && i + at_a_time <= end; i += at_a_time) {
            const Words own = lanes + counter;
            store_vector(i,
                         WordPair{random.all(own), random.all(own + width * RandomBits::stride)});
            counter += 2 * width * RandomBits::stride;
        }
#endif
        for (; i < end; ++i, counter += RandomBits::stride) store(i, random.all(counter));
    }
}

template <Master master>
void split_all(const float* values, std::size_t count, const Stream& stream, std::byte* high,
               std::byte* low) {
    auto* const h = reinterpret_cast<Bfloat16*>(high);
    auto* const l = reinterpret_cast<typename Low<master>::Type*>(low);
    const auto split_one = [=](std::size_t i, std::uint32_t random) {
        split<master>(values[i], random, h[i], l[i]);
    };
    const auto split_from = [&](std::size_t i, bool in_vectors, const auto& split_vector) {
        if (master == Master::float24) {
            return with_random_bits(stream, count, in_vectors, split_one, split_vector);
        }
#if defined(SCHUSS_HAS_VECTORS)
        for (; in_vectors && i + at_a_time <= count; i += at_a_time) split_vector(i, WordPair{});
#endif
        for (; i < count; ++i) split_one(i, 0);
    };
#if defined(SCHUSS_HAS_VECTORS)
    Words largest = {};
    split_from(0, true, [&](std::size_t i, const WordPair& random) __attribute__((always_inline)) {
        const WordPair bits = read_words(values + i);
        const Words first = bits.first & 0x7fffffffu, last = bits.last & 0x7fffffffu;
        const Words larger = first > last ? first : last;
        largest = larger > largest ? larger : largest;
        split(bits, random, h + i, l + i);
    });
    if (largest_of(largest) < 0x7f800000u) return;  // all are finite
#endif
    split_from(0, false, [](std::size_t, const auto&) {});
}

inline void round_at_random(const float* values, std::size_t count, const Stream& stream,
                            std::byte* parameter) {
    auto* const p = reinterpret_cast<Bfloat16*>(parameter);
    const auto round_one = [=](std::size_t i, std::uint32_t random) {
        store_at_random(p[i], values[i], random >> 16);
    };
#if defined(SCHUSS_HAS_VECTORS)
    const auto round_pair = [=](std::size_t i, const WordPair& random) {
        const WordPair bits = read_words(values + i);
        write_as(p + i, upper_halves(rounded_at_random(bits.first, random.first),
                                     rounded_at_random(bits.last, random.last)));
    };
#else
    const int round_pair = 0;
#endif
    with_random_bits(stream, count, true, round_one, round_pair);
}

inline void load_floats(DType dtype, const std::byte* from, std::size_t count, float* to) {
    if (dtype == DType::bfloat16) {
        return widen(reinterpret_cast<const Bfloat16*>(from), count, to);
    }
    load_as<float>(dtype)(from, to, count);
}
void load_gradient(const Call& call, const std::byte* gradient, std::size_t count, float* to) {
    load_floats(call.formats.gradient, gradient, count, to);
}

/// Reads the parameter of a call, whose kernel reads another format.
void load_parameter(const Call& call, const std::byte* parameter, const std::byte* low,
                    std::size_t count, float* to) {
    switch (call.formats.master) {
        case Master::none:
            return load_floats(call.formats.parameter, parameter, count, to);
        case Master::float32:
            return join_all<Master::float32>(parameter, low, to, count);
        case Master::float24:
            return join_all<Master::float24>(parameter, low, to, count);
    }
}

/// Writes it back, between the bounds if there is a master.
void store_parameter(const Call& call, float* values, std::size_t count, const Stream& stream,
                     std::byte* parameter, std::byte* low) {
    const Master master = call.formats.master;
    if (call.formats.rounds_parameter) return round_at_random(values, count, stream, parameter);
    if (master == Master::none) {
        return loops_of(call.formats.parameter).store(values, parameter, count);
    }
    if (call.is_bounded) put_between<float, float>(values, count, call.low, call.high);
    (master == Master::float32 ? split_all<Master::float32>
                               : split_all<Master::float24>)(values, count, stream, parameter, low);
}
