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
    const std::uint32_t quiet = magnitude > infinity ? 0x400000u : 0;
    const std::uint32_t special = (magnitude << 13) | 0x7f800000u | quiet;
    const auto count = static_cast<float>(static_cast<std::int32_t>(magnitude));
    const std::uint32_t small = bits_of(count * 0x1p-24f);  // subnormal in float16, not in float32
    const std::uint32_t finite = magnitude < one ? small : normal;
    return float_of(sign | (magnitude < infinity ? finite : special));
}
inline float loaded(Bfloat16 x) {
    return float_of(std::uint32_t{x.bits} << 16);
}

#if defined(SCHUSS_HAS_VECTORS)
inline Words bits_of(Floats x) {
    return __builtin_bit_cast(Words, x);
}
inline Floats float_of(Words bits) {
    return __builtin_bit_cast(Floats, bits);
}

inline Floats loaded(Floats x) {
    return x;
}
inline Doubles loaded(Doubles x) {
    return x;
}
inline Floats loaded(Float16s x) {
    return widened(x);
}
#endif

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

#if defined(SCHUSS_HAS_VECTORS)
inline void store(Floats& memory, Floats x) {
    memory = x;
}
inline void store(Doubles& memory, Doubles x) {
    memory = x;
}
inline void store(Float16s& memory, Floats x) {
    const Words nan = (bits_of(x) & 0x80000000u) | 0x7fc00000u;
    memory = narrowed(float_of(x != x ? nan : bits_of(x)));
}
#endif

/// Stores values rounded to nearest.
struct ToNearest {
    template <typename Stored, typename Compute>
    void operator()(Stored& memory, Compute value) const {
        store(memory, value);
    }
};

/// Elements of an array in their compute type: loaded when constructed, stored when destroyed.
template <int width, typename Stored, typename Part, typename Store>
class Scoped {
  public:
    using Raw = typename Vector<Stored, width>::Type;
    using Value = decltype(loaded(Raw{}));

    Scoped(Stored* memory, Part part, const Store& store)
        : memory_(memory), part_(part), store_(store), value_(loaded(read<width>(memory, part))) {}
    ~Scoped() {
        Raw raw;
        store_(raw, value_);
        write<width>(memory_, raw, part_);
    }
    Scoped(const Scoped&) = delete;
    Scoped& operator=(const Scoped&) = delete;
    Value& operator*() { return value_; }

  private:
    Stored* memory_;
    Part part_;
    const Store& store_;
    Value value_;
};
