// The block loop: a rule whose states are blocks of codes (numbers/square.hpp). Each block is
// decoded, updated and encoded while it is in the first-level cache. Included by level-inl.hpp in
// its anonymous namespace.
#pragma once

/// How far ahead of the block at hand memory is fetched.
constexpr std::size_t block_distance = 4096;

/// The random bits of a block, from its first element on.
struct BlockBits {
    BlockBits() = default;
    BlockBits(const Stream& stream, std::size_t element)
        : random(key_of(stream.key, stream.first + element)),
          counter(random.begin(static_cast<std::uint32_t>(stream.first + element))) {}

    RandomBits random{0};
    std::uint32_t counter = 0;  // of the first element
};

/// Sets the scale of a block by the bits of its largest magnitude. Returns 2^64 divided by the
/// unit. Changes the values if they cannot be encoded with it: if they are very small or very
/// large, or if one is not finite. Then the scale becomes NaN, and with it every element.
template <bool nonnegative>
[[gnu::noinline]] float set_special_scale(Square8& block, float* values) {
    const float largest = block.scale;
    const bool is_small = largest<smallest_unlifted, is_large = largest> largest_scale;
    const bool is_finite = largest >= 0 && largest < HUGE_VALF,
               is_number = is_finite && largest > 0;
    if (is_large) block.scale = largest_scale;
    if (!is_number) block.scale = is_finite ? 0 : float_of(0x7fc00000u);
    for (std::size_t i = 0; i < square_block; ++i) {
        const float x = values[i];
        if (is_small) values[i] = x * lift;
        if (x > largest_scale) values[i] = largest_scale;
        if (x < -largest_scale) values[i] = -largest_scale;
        if (!is_number) values[i] = 0;
    }
    const float scale = is_small ? largest * lift : block.scale;
    return is_number ? largest_square<nonnegative> * 0x1p64f / scale : 0;
}
template <bool nonnegative>
float set_scale(Square8& block, std::uint32_t largest, float* values) {
    const std::uint32_t least = bits_of(smallest_unlifted), most = bits_of(largest_scale);
    block.scale = float_of(largest);
    if (largest - least > most - least) return set_special_scale<nonnegative>(block, values);
    return largest_square<nonnegative> * 0x1p64f / block.scale;
}

/// State `number` of a rule.
template <int number, bool nonnegative>
class BlockState {
  public:
    static constexpr int index = number;
    static constexpr bool is_nonnegative = nonnegative;
    /// States share random bits by twos. The second has the halves of each number exchanged.
    static constexpr int pair = number / 2;
    template <typename Bits>
    static Bits own_bits(Bits bits) {
        if constexpr (number % 2 == 1) return bits << 16 | bits >> 16;
        return bits;
    }

    explicit BlockState(std::byte* const* operands)
        : blocks_(reinterpret_cast<Square8*>(operands[rules::first_state_operand + number])) {}

    Square8* at(std::size_t block) const { return blocks_ + block; }

    /// Whether the unit of a block is not subnormal.
    bool is_plain(std::size_t block) const {
        const float scale = blocks_[block].scale;
        return scale == 0 || !(scale < smallest_plain);
    }

    /// Decodes a block, for the caller to update.
    std::byte* decode(std::size_t block) {
        const Square8& from = blocks_[block];
        const bool plain = is_plain(block);
        const float unit = (plain ? from.scale : from.scale * lift) / largest_square<nonnegative>;
        const float drop = plain ? 1 : 1 / lift;
        for (std::size_t i = 0; i < square_block; ++i) {
            const std::int32_t code =
                nonnegative ? std::int32_t{from.codes[i]} : static_cast<std::int8_t>(from.codes[i]);
            values_[i] = decoded<nonnegative>(static_cast<float>(code), unit) * drop;
        }
        return reinterpret_cast<std::byte*>(values_);
    }

    /// Encodes what was decoded, of which the first `count` elements belong to the array.
    void encode(std::size_t block, std::size_t count, const Stream* streams) {
        for (std::size_t i = count; i < square_block; ++i) values_[i] = 0;
        std::uint32_t largest = 0;
        for (std::size_t i = 0; i < square_block; ++i) {
            const std::uint32_t bits = bits_of(values_[i]) & 0x7fffffffu;
            largest = bits > largest ? bits : largest;
        }
        Square8& to = blocks_[block];
        const float inverse = set_scale<nonnegative>(to, largest, values_);
        const auto [random, first] = BlockBits(streams[2 * pair], block * square_block);
        for (std::uint32_t i = 0; i < square_block; ++i) {
            const std::uint32_t bits = own_bits(random.all(first + i * RandomBits::stride));
            const float sum = with_code<nonnegative>(values_[i], inverse, signed_integer(bits));
            to.codes[i] = static_cast<std::uint8_t>(bits_of(sum));
        }
    }

  private:
    Square8* blocks_;
    alignas(cache_line) float values_[square_block];
};

// The conversions of master-inl.hpp and pieces-inl.hpp.
void load_gradient(const Call& call, const std::byte* gradient, std::size_t count, float* to);
void load_parameter(const Call& call, const std::byte* parameter, const std::byte* low,
                    std::size_t count, float* to);
void store_parameter(const Call& call, float* values, std::size_t count, const Stream& stream,
                     std::byte* parameter, std::byte* low);

/// Whether a kernel of blocks can convert the arrays of a call.
inline bool converts_in_blocks(const Call& call) {
    const bool is_bounded = call.is_bounded && call.formats.master != Master::none;
    return call.formats.state == DType::square8 && !is_bounded;
}

/// The arrays of an update of blocks, apart from the states.
class BlockArrays {
  public:
    /// converted: nullptr if the arrays are in float32.
    BlockArrays(std::byte* const* operands, const Call* converted, const Stream* streams)
        : operands_(operands), call_(converted) {
        if (call_ == nullptr) return;
        stream_ = streams[rules::max_states];
        if (call_->formats.master != Master::none) {
            low_ = operands[rules::first_state_operand + count(*call_->states)];
        }
    }

    bool are_in_place() const { return call_ == nullptr; }

    /// Where the elements of a block are in float32.
    struct Block {
        float* parameters;
        float* gradients;
    };
    Block at(std::size_t block) {
        if (call_ == nullptr) {
            const std::size_t first = block * square_block;
            return {reinterpret_cast<float*>(operands_[rules::parameter_operand]) + first,
                    reinterpret_cast<float*>(operands_[rules::gradient_operand]) + first};
        }
        return {parameters_[block % slots], gradients_[block % slots]};
    }

    /// Converts a block before it is updated, and back. In a loop, the next block is converted
    /// before one is updated, and the one before it is converted back: so none waits for the
    /// results of another.
    void load(std::size_t block, std::size_t count, bool prefetches) {
        if (call_ != nullptr) convert(block, count, prefetches);
    }
    void store(std::size_t block, std::size_t count) {
        if (call_ != nullptr) convert_back(block, count);
    }

  private:
    std::byte* parameter(std::size_t i) const {
        return operands_[rules::parameter_operand] + i * numbers::size_of(call_->formats.parameter);
    }
    std::byte* gradient(std::size_t i) const {
        return operands_[rules::gradient_operand] + i * numbers::size_of(call_->formats.gradient);
    }
    std::byte* low(std::size_t i) const {
        return low_ + i * numbers::size_of(call_->formats.master);
    }

    [[gnu::noinline]] void convert(std::size_t block, std::size_t count, bool prefetches) {
        const std::size_t first = block * square_block;
        const auto [p, g] = at(block);
        if (prefetches) {
            const std::size_t end = first + count;
            prefetch_between(parameter(first), parameter(end));
            prefetch_between(gradient(first), gradient(end));
            prefetch_between(low(first), low(end));
        }
        load_parameter(*call_, parameter(first), low(first), count, p);
        load_gradient(*call_, gradient(first), count, g);
    }
    [[gnu::noinline]] void convert_back(std::size_t block, std::size_t count) {
        const std::size_t first = block * square_block;
        const Stream own = {stream_.key, stream_.first + first};
        store_parameter(*call_, at(block).parameters, count, own, parameter(first), low(first));
    }
    static void prefetch_between(const std::byte* begin, const std::byte* end) {
        prefetch(begin, block_distance, static_cast<std::size_t>(end - begin));
    }

    std::byte* const* operands_;
    const Call* call_;
    std::byte* low_ = nullptr;  // of the parameter, if there is a master
    Stream stream_ = {};        // of the parameter
    static constexpr std::size_t slots = 4;
    alignas(cache_line) float parameters_[slots][square_block];
    alignas(cache_line) float gradients_[slots][square_block];
};

/// Updates one block by the kernel for states in float32.
template <class Rule, Decay decay, class... States>
void update_block(std::size_t block, std::size_t n, const Coefficients<Rule, float>& c,
                  const Stream* streams, BlockArrays& arrays, States&... states) {
    const std::size_t count = smallest(n - block * square_block, square_block);
    arrays.load(block, count, false);
    const auto [p, g] = arrays.at(block);
    std::byte* const operands[] = {reinterpret_cast<std::byte*>(p), reinterpret_cast<std::byte*>(g),
                                   states.decode(block)...};
    kernel<Rule, decay, float, float, float, float>(operands, count, &c, nullptr, false, nullptr);
    arrays.store(block, count);
    (states.encode(block, count, streams), ...);
}

#if defined(SCHUSS_HAS_VECTORS)
/// The elements of a state in vectors: those of the block at hand, which are decoded and updated,
/// and those of the block before it, which are encoded at the same time, since the divider and the
/// other units then work at the same time.
template <class State>
class BlockVectors {
  public:
    /// values: two blocks. ignored: is written in place of a block before the first.
    BlockVectors(const State& state, float (&values)[2][square_block], Square8* ignored)
        : state_(state), values_(values[0]), before_(values[1]), last_(ignored) {}

    void begin(std::size_t block, bool prefetches) {
        next_ = state_.at(block);
        if (prefetches) prefetch(next_, block_distance, sizeof(Square8));
        unit_ = filled<Floats>(next_->scale / largest_square<nonnegative>);
        largest_ = Words{};
    }

    class Element {
      public:
        Element(const BlockVectors& all, std::size_t i)
            : all_(all),
              i_(i),
              value_(
                  decoded<nonnegative>(load_codes<nonnegative>(all.next_->codes + i), all.unit_)) {}
        ~Element() {
            write<width_of<float>>(all_.values_ + i_, value_, All{});
            // Of a nonnegative state, only a NaN can have the sign bit set, and is the largest
            // then.
            const Words bits = bits_of(nonnegative ? value_ : magnitude(value_));
            all_.largest_ = bits > all_.largest_ ? bits : all_.largest_;
        }
        Element(const Element&) = delete;
        Element& operator=(const Element&) = delete;
        Floats& operator*() { return value_; }

      private:
        const BlockVectors& all_;
        std::size_t i_;
        Floats value_;
    };
    Element at(std::size_t i, All) const { return {*this, i}; }

    /// Encodes elements of the block before.
    void encode(std::size_t i, const Words* bits) const {
        const Floats random = signed_integer(State::own_bits(bits[State::pair]));
        const Floats x = read<width_of<float>>(before_ + i, All{});
        store_codes(last_->codes + i, with_code<nonnegative>(x, inverse_, random));
    }

    void end() {
        inverse_ = filled<Floats>(set_scale<nonnegative>(*next_, largest_of(largest_), values_));
        last_ = next_;
        float* const free = before_;
        before_ = values_;
        values_ = free;
    }

  private:
    static constexpr bool nonnegative = State::is_nonnegative;

    const State& state_;
    float* values_;
    float* before_;
    Square8* last_;
    Square8* next_ = nullptr;
    Floats unit_ = {}, inverse_ = {};
    mutable Words largest_ = {};
};

/// Updates whole blocks from `block` to before `end`, up to the first that is not plain or has
/// another key of random bits. Returns that block. is_plain: see `update`. Measured: without what
/// a plain step does not need, Adam takes 0.96 of its time in the cache.
template <class Rule, Decay decay, bool is_plain, class... States>
std::size_t update_blocks(std::size_t block, std::size_t end, bool prefetches,
                          const Coefficients<Rule, float>& scalars, const Stream* streams,
                          BlockArrays& arrays, const States&... states) {
    constexpr int width = width_of<float>, pairs = (sizeof...(States) + 1) / 2;
    alignas(cache_line) float values[sizeof...(States)][2][square_block] = {};
    Square8 ignored = {};  // what is before the first block
    const auto c = filled<Floats>(scalars);
    Words counters[pairs];
    BlockBits bits[pairs];
    for (int k = 0; k < pairs; ++k) {
        bits[k] = BlockBits(streams[2 * k], block * square_block);
        for (std::uint32_t i = 0; i < width; ++i) {
            counters[k][i] =
                bits[k].counter + (i - std::uint32_t{square_block}) * RandomBits::stride;
        }
    }
    const auto update_all = [&](auto... vectors) __attribute__((always_inline)) {
        const auto encode = [&](std::size_t i) __attribute__((always_inline)) {
            Words random[pairs];
            for (int k = 0; k < pairs; ++k) {
                random[k] = bits[k].random.all(counters[k]);
                counters[k] += width * RandomBits::stride;
            }
            (vectors.encode(i, random), ...);
        };
        const std::uint64_t key = (streams->first + block * square_block) >> 32;
        const auto is_next = [&](std::size_t b) {
            const bool has_key = (streams->first + b * square_block) >> 32 == key;
            return b < end && has_key && (states.is_plain(b) && ...);
        };
        const bool in_place = prefetches && arrays.are_in_place();
        std::size_t b = block;
        if (b < end) arrays.load(b, square_block, prefetches);
        for (; is_next(b); ++b) {
            if (b + 1 < end) arrays.load(b + 1, square_block, prefetches);
            if (b > block) arrays.store(b - 1, square_block);
            const auto [p, g] = arrays.at(b);
            const ParameterArray<width, float> parameters = {p};
            const GradientArray<width, float> gradients = {g};
            (vectors.begin(b, prefetches), ...);
            for (std::size_t i = 0; i < square_block; i += width) {
                if (in_place && i * sizeof(float) % cache_line == 0) {
                    prefetch(p + i, block_distance, cache_line);
                    prefetch(g + i, block_distance, cache_line);
                }
                update<Rule, decay, is_plain>(i, All{}, c, parameters, gradients, vectors...);
                encode(i);
            }
            (vectors.end(), ...);
        }
        if (b > block) arrays.store(b - 1, square_block);
        for (std::size_t i = 0; i < square_block; i += width) encode(i);
        return b;
    };
    return update_all(BlockVectors<States>(states, values[States::index], &ignored)...);
}
#endif

/// Whether a step neither scales nor clips the gradients, and has no weight decay.
inline bool is_plain(Decay decay, const Common<float>& c) {
    return c.gradient.scale == 1 && c.gradient.limit == HUGE_VALF && decay == Decay::decoupled &&
           c.decay.decay_factor == 1;
}

/// Updates all elements in order, from the first of a block on.
template <class Rule, Decay decay, class... States>
void update_all_blocks(std::size_t n, [[maybe_unused]] bool prefetches,
                       const Coefficients<Rule, float>& c, const Stream* streams,
                       BlockArrays& arrays, States&... states) {
    for (std::size_t block = 0; block * square_block < n; ++block) {
#if defined(SCHUSS_HAS_VECTORS)
        const std::size_t whole = n / square_block;
        if (!(states.is_plain(block) && ...)) {
            update_block<Rule, decay>(block, n, c, streams, arrays, states...);
            continue;
        }
        block = is_plain(decay, c) ? update_blocks<Rule, decay, true>(block, whole, prefetches, c,
                                                                      streams, arrays, states...)
                                   : update_blocks<Rule, decay, false>(block, whole, prefetches, c,
                                                                       streams, arrays, states...);
        if (block * square_block >= n) return;
#endif
        update_block<Rule, decay>(block, n, c, streams, arrays, states...);
    }
}

/// A kernel whose states are blocks of codes. It computes in float32, and converts the parameters
/// and gradients of the call `converted`.
template <class Rule, Decay decay>
[[gnu::noinline]] void block_kernel(std::byte* const* operands, std::size_t n,
                                    const void* coefficients, const Stream* streams,
                                    bool prefetches, const Call* converted) {
    const auto c = *static_cast<const Coefficients<Rule, float>*>(coefficients);
    constexpr int states = count(Rule::states);
    BlockArrays arrays(operands, converted, streams);
    constexpr const State* kept = Rule::states.at;
    using S0 = BlockState<0, kept[0].nonnegative>;
    using S1 = BlockState<1, kept[1].nonnegative>;
    using S2 = BlockState<2, kept[2].nonnegative>;
    const auto run = [&](auto&&... state) {
        update_all_blocks<Rule, decay>(n, prefetches, c, streams, arrays, state...);
    };
    if constexpr (states == 1) run(S0(operands));
    if constexpr (states == 2) run(S0(operands), S1(operands));
    if constexpr (states == 3) run(S0(operands), S1(operands), S2(operands));
}
