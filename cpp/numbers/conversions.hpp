// The conversion of elements between memory and the type they are computed in. Included inside an
// anonymous namespace, like the rules.
//
// The conversions are plain integer arithmetic without branches, which the compiler vectorises on
// every instruction set. None depends on whether the processor treats subnormals as zero.
#pragma once

inline std::uint32_t bits_of(float x) {
    return __builtin_bit_cast(std::uint32_t, x);
}
inline float float_of(std::uint32_t bits) {
    return __builtin_bit_cast(float, bits);
}

inline float loaded(float x) {
    return x;
}
inline double loaded(double x) {
    return x;
}
inline float loaded(Float16 x) {
    constexpr std::uint32_t rebias = (127 - 15) << 23, one = 1 << 10, infinity = 31 << 10;
    const std::uint32_t magnitude = x.bits & 0x7fffu;
    const std::uint32_t sign = std::uint32_t{x.bits & 0x8000u} << 16;
    const std::uint32_t normal = (magnitude << 13) + rebias;
    const std::uint32_t special = (magnitude << 13) | 0x7f800000u;
    const auto count = static_cast<float>(static_cast<std::int32_t>(magnitude));
    const std::uint32_t small = bits_of(count * 0x1p-24f);  // subnormal in float16, not in float32
    const std::uint32_t finite = magnitude < one ? small : normal;
    return float_of(sign | (magnitude < infinity ? finite : special));
}
inline float loaded(Bfloat16 x) {
    return float_of(std::uint32_t{x.bits} << 16);
}

template <typename T>
Complex<T> loaded(Complex<T> x) {
    return x;
}

/// Adds to the bits that are cut off, so that those which stay are rounded. NaN stays NaN.
inline Bfloat16 add_and_truncate(float x, std::uint32_t more) {
    const std::uint32_t nan = bits_of(x) | 0x400000u;
    const std::uint32_t rounded = x != x ? nan : bits_of(x) + more;
    return {static_cast<std::uint16_t>(rounded >> 16)};
}

inline void store(float& memory, float x) {
    memory = x;
}
inline void store(double& memory, double x) {
    memory = x;
}
template <typename T>
void store(Complex<T>& memory, Complex<T> x) {
    memory = x;
}
/// Rounds to nearest, ties to even.
inline void store(Float16& memory, float x) {
    constexpr std::uint32_t rebias = (127 - 15) << 23;
    constexpr std::uint32_t smallest_normal = (127 - 14) << 23;
    constexpr std::uint32_t overflow = 0x477ff000u;  // 65520, half way to what 2^16 would be
    const std::uint32_t magnitude = bits_of(x) & 0x7fffffffu;
    const std::uint32_t even = (magnitude >> 13) & 1u;
    const std::uint32_t normal = (magnitude - rebias + 0xfffu + even) >> 13;
    // Adding 0.5 aligns the exponent so that the addition rounds to the last bit of a float16
    // subnormal. Other values are replaced by 0 first, since they could slow the addition down.
    const float small_part = float_of(magnitude < smallest_normal ? magnitude : 0);
    const std::uint32_t small = bits_of(small_part + 0.5f) - bits_of(0.5f);
    const std::uint32_t nan = 0x7e00u;
    const std::uint32_t finite = magnitude < smallest_normal ? small : normal;
    const std::uint32_t special = magnitude > 0x7f800000u ? nan : 0x7c00u;
    const std::uint32_t rounded = magnitude < overflow ? finite : special;
    memory = {static_cast<std::uint16_t>((bits_of(x) >> 16 & 0x8000u) | rounded)};
}
/// Rounds to nearest, ties to even.
inline void store(Bfloat16& memory, float x) {
    const std::uint32_t even = (bits_of(x) >> 16) & 1u;
    memory = add_and_truncate(x, 0x7fffu + even);
}

/// Rounds up or down with a probability given by the distance, so that the mean is exact (Gupta et
/// al., "Deep learning with limited numerical precision", 2015, section 3). Takes 16 random bits.
inline void store_at_random(Bfloat16& memory, float x, std::uint32_t random) {
    memory = add_and_truncate(x, random);
}

/// An element of an array in its compute type: loaded when constructed, stored when destroyed.
template <typename Compute, typename Stored>
class ScopedValue {
  public:
    explicit ScopedValue(Stored& memory) : memory_(memory), value_(loaded(memory)) {}
    ~ScopedValue() { store(memory_, value_); }
    ScopedValue(const ScopedValue&) = delete;
    ScopedValue& operator=(const ScopedValue&) = delete;
    operator Compute&() { return value_; }

  private:
    Stored& memory_;
    Compute value_;
};

/// The same for an element of a state. A state in bfloat16 is rounded stochastically.
template <typename Compute, typename Stored>
class ScopedState : public ScopedValue<Compute, Stored> {
  public:
    ScopedState(Stored& memory, std::uint32_t) : ScopedValue<Compute, Stored>(memory) {}
};

template <>
class ScopedState<float, Bfloat16> {
  public:
    ScopedState(Bfloat16& memory, std::uint32_t random)
        : memory_(memory), value_(loaded(memory)), random_(random) {}
    ~ScopedState() { store_at_random(memory_, value_, random_); }
    ScopedState(const ScopedState&) = delete;
    ScopedState& operator=(const ScopedState&) = delete;
    operator float&() { return value_; }

  private:
    Bfloat16& memory_;
    float value_;
    std::uint32_t random_;
};
