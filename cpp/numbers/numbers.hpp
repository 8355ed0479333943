// How an element lies in memory. Included, as the rules are, inside an anonymous namespace.
#pragma once

/// An element of an array as its compute type: loaded when made, stored back when it goes.
template <typename Compute, typename Stored>
class Element {
  public:
    explicit Element(Stored& memory) : memory_(memory), value_(memory) {}
    ~Element() { memory_ = value_; }
    Element(const Element&) = delete;
    Element& operator=(const Element&) = delete;
    operator Compute&() { return value_; }

  private:
    Stored& memory_;
    Compute value_;
};
