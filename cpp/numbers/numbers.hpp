// How an element lies in memory: its conversion to the compute type, and back. Included, as the
// rules are, inside an anonymous namespace.
//
// Plain integer arithmetic without branches, which vectorises everywhere; no conversion depends on
// whether the processor's mode counts subnormals as zero.
#pragma once

inline std::uint32_t bits_of(float x) {
    return __builtin_bit_cast(std::uint32_t, x);
}
inline float float_of(std::uint32_t bits) {
    return __builtin_bit_cast(float, bits);
}

/// IEEE 754 binary16: 5 bits of exponent, 10 of fraction.
struct Float16 {
    std::uint16_t bits;

    float load() const {
        constexpr std::uint32_t rebias = (127 - 15) << 23, one = 1 << 10, infinity = 31 << 10;
        const std::uint32_t magnitude = bits & 0x7fffu;
        const std::uint32_t sign = std::uint32_t{bits & 0x8000u} << 16;
        const std::uint32_t normal = (magnitude << 13) + rebias;
        const std::uint32_t special = (magnitude << 13) | 0x7f800000u;
        const auto count = static_cast<float>(static_cast<std::int32_t>(magnitude));
        const std::uint32_t small = bits_of(count * 0x1p-24f);  // subnormals here, normal there
        const std::uint32_t finite = magnitude < one ? small : normal;
        return float_of(sign | (magnitude < infinity ? finite : special));
    }

    /// To the nearest, ties to even.
    static Float16 store(float x) {
        constexpr std::uint32_t rebias = (127 - 15) << 23;
        constexpr std::uint32_t smallest_normal = (127 - 14) << 23;
        constexpr std::uint32_t overflow = 0x477ff000u;  // 65520, half way to what 2^16 would be
        const std::uint32_t magnitude = bits_of(x) & 0x7fffffffu;
        const std::uint32_t even = (magnitude >> 13) & 1u;
        const std::uint32_t normal = (magnitude - rebias + 0xfffu + even) >> 13;
        // Its last place is then that of a subnormal: the addition rounds. What is not small is
        // replaced first, since the addition may be as slow as the processor likes.
        const float small_part = float_of(magnitude < smallest_normal ? magnitude : 0);
        const std::uint32_t small = bits_of(small_part + 0.5f) - bits_of(0.5f);
        const std::uint32_t nan = 0x7e00u;
        const std::uint32_t finite = magnitude < smallest_normal ? small : normal;
        const std::uint32_t special = magnitude > 0x7f800000u ? nan : 0x7c00u;
        const std::uint32_t rounded = magnitude < overflow ? finite : special;
        return {static_cast<std::uint16_t>((bits_of(x) >> 16 & 0x8000u) | rounded)};
    }
};

/// The first half of a float32: 8 bits of exponent, 7 of fraction (Kalamkar et al., "A study of
/// bfloat16 for deep learning training", 2019).
struct Bfloat16 {
    std::uint16_t bits;

    float load() const { return float_of(std::uint32_t{bits} << 16); }

    /// To the nearest, ties to even.
    static Bfloat16 store(float x) {
        const std::uint32_t even = (bits_of(x) >> 16) & 1u;
        return add_and_truncate(x, 0x7fffu + even);
    }

    /// Up or down, with odds by the distance: the mean is exact (Gupta et al., "Deep learning with
    /// limited numerical precision", 2015, section 3). random: of 16 bits.
    static Bfloat16 store_at_random(float x, std::uint32_t random) {
        return add_and_truncate(x, random);
    }

  private:
    static Bfloat16 add_and_truncate(float x, std::uint32_t more) {
        const std::uint32_t nan = bits_of(x) | 0x400000u;
        const std::uint32_t rounded = x != x ? nan : bits_of(x) + more;
        return {static_cast<std::uint16_t>(rounded >> 16)};
    }
};

inline float loaded(float x) {
    return x;
}
inline double loaded(double x) {
    return x;
}
inline float loaded(Float16 x) {
    return x.load();
}
inline float loaded(Bfloat16 x) {
    return x.load();
}

inline void store(float& memory, float x) {
    memory = x;
}
inline void store(double& memory, double x) {
    memory = x;
}
inline void store(Float16& memory, float x) {
    memory = Float16::store(x);
}
inline void store(Bfloat16& memory, float x) {
    memory = Bfloat16::store(x);
}

/// An element of an array as its compute type: loaded when made, stored back when it goes.
template <typename Compute, typename Stored>
class Element {
  public:
    explicit Element(Stored& memory) : memory_(memory), value_(loaded(memory)) {}
    ~Element() { store(memory_, value_); }
    Element(const Element&) = delete;
    Element& operator=(const Element&) = delete;
    operator Compute&() { return value_; }

  private:
    Stored& memory_;
    Compute value_;
};

/// The same for a state: what has but half the bits is rounded at random.
template <typename Compute, typename Stored>
class StateElement : public Element<Compute, Stored> {
  public:
    StateElement(Stored& memory, std::uint32_t) : Element<Compute, Stored>(memory) {}
};

template <>
class StateElement<float, Bfloat16> {
  public:
    StateElement(Bfloat16& memory, std::uint32_t random)
        : memory_(memory), value_(memory.load()), random_(random) {}
    ~StateElement() { memory_ = Bfloat16::store_at_random(value_, random_); }
    StateElement(const StateElement&) = delete;
    StateElement& operator=(const StateElement&) = delete;
    operator float&() { return value_; }

  private:
    Bfloat16& memory_;
    float value_;
    std::uint32_t random_;
};
