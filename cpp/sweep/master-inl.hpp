// Parameters in bfloat16 that are rounded otherwise than to nearest: those whose missing bits are
// kept, as a master, and those that are rounded at random. Included by level-inl.hpp in its
// anonymous namespace.
#pragma once

using numbers::Master;

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
/// infinities and NaN. random: 16 random bits, by which a number is rounded to 24 bits first.
template <Master master>
void split(float x, std::uint32_t random, Bfloat16& high, typename Low<master>::Type& low) {
    std::uint32_t bits = bits_of(x);
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    const bool is_finite = magnitude < 0x7f800000u;
    const std::uint32_t quiet = magnitude > 0x7f800000u ? 0x40 : 0;
    if (master == Master::float24) bits = (bits + (random >> 8)) & ~0xffu;
    const std::uint32_t nearest = (bits + 0x8000u) >> 16;
    const auto rest = static_cast<std::int32_t>(bits - (nearest << 16)) >> Low<master>::shift;
    high = {static_cast<std::uint16_t>(is_finite ? nearest : bits_of(x) >> 16 | quiet)};
    low = static_cast<typename Low<master>::Type>(is_finite ? rest : 0);
}

template <Master master>
void join_all(const void* high, const void* low, float* out, std::size_t count) {
    const auto* const h = static_cast<const Bfloat16*>(high);
    const auto* const l = static_cast<const typename Low<master>::Type*>(low);
    for (std::size_t i = 0; i < count; ++i) out[i] = joined<master>(h[i], l[i]);
}

/// Calls store(i, bits) for each element, with 16 random bits of its index. The indices may cross a
/// multiple of 2^32.
template <typename Store>
void with_random_bits(const Stream& stream, std::size_t count, const Store& store) {
    for (std::size_t i = 0; i < count;) {
        const std::uint64_t first = stream.first + i;
        const RandomBits random(key_of(stream.key, first));
        std::uint32_t counter = random.begin(static_cast<std::uint32_t>(first));
        const std::uint64_t left = (std::uint64_t{1} << 32) - static_cast<std::uint32_t>(first);
        const std::size_t end = left < count - i ? i + left : count;
        for (; i < end; ++i, counter += RandomBits::stride) store(i, random.at(counter));
    }
}

template <Master master>
void split_all(const float* values, std::size_t count, const Stream& stream, std::byte* high,
               std::byte* low) {
    auto* const h = reinterpret_cast<Bfloat16*>(high);
    auto* const l = reinterpret_cast<typename Low<master>::Type*>(low);
    if (master == Master::float32) {
        for (std::size_t i = 0; i < count; ++i) split<master>(values[i], 0, h[i], l[i]);
    } else {
        with_random_bits(stream, count, [=](std::size_t i, std::uint32_t random) {
            split<master>(values[i], random, h[i], l[i]);
        });
    }
}

inline void round_at_random(const float* values, std::size_t count, const Stream& stream,
                            std::byte* parameter) {
    auto* const p = reinterpret_cast<Bfloat16*>(parameter);
    with_random_bits(stream, count, [=](std::size_t i, std::uint32_t random) {
        store_at_random(p[i], values[i], random);
    });
}

/// Reads the parameter of a call, whose kernel reads another format.
inline void load_parameter(const Call& call, const std::byte* parameter, const std::byte* low,
                           std::size_t count, float* to) {
    switch (call.formats.master) {
        case Master::none:
            return load_as<float>(call.formats.parameter)(parameter, to, count);
        case Master::float32:
            return join_all<Master::float32>(parameter, low, to, count);
        case Master::float24:
            return join_all<Master::float24>(parameter, low, to, count);
    }
}

/// Writes it back, between the bounds if there is a master.
inline void store_parameter(const Call& call, float* values, std::size_t count,
                            const Stream& stream, std::byte* parameter, std::byte* low) {
    const Master master = call.formats.master;
    if (call.formats.rounds_parameter) return round_at_random(values, count, stream, parameter);
    if (master == Master::none) {
        return loops_of(call.formats.parameter).store(values, parameter, count);
    }
    if (call.is_bounded) put_between<float, float>(values, count, call.low, call.high);
    (master == Master::float32 ? split_all<Master::float32>
                               : split_all<Master::float24>)(values, count, stream, parameter, low);
}
