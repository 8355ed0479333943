// Whether arrays share memory.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "bindings/array_view.hpp"

namespace schuss::bindings {

/// The addresses from the first to past the last byte of an array.
struct Bounds {
    std::size_t begin, end;

    bool is_empty() const { return begin >= end; }
};

Bounds bounds_of(const ArrayView& array);

/// Whether the strides alone show that no two elements meet: each axis, from the least stride to
/// the greatest, steps over all that lies within it.
bool plainly_distinct(const ArrayView& array);

/// Whether two elements of the array share memory, or cannot be told apart with bounded work.
bool elements_overlap(const ArrayView& array);

/// An array, as messages call it, and whether the call writes it.
struct Named {
    ArrayView array;
    std::string argument;
    bool written = true;
};

/// ValueError if one of the arrays shares memory with another that is written.
///
/// Arrays whose bounds do not meet are apart. Those of arrays that interleave do: columns of one
/// matrix, every other row, fields of records. They are told apart by their addresses modulo one of
/// their strides, by sorting. Only arrays that this does not separate are compared in pairs.
void check_disjoint(const std::string& call, std::vector<Named> arrays);

/// The arrays that a call writes, none of which shares memory with another.
class WriteSet {
  public:
    WriteSet() = default;

    /// ValueError if two of the arrays share memory.
    WriteSet(const std::string& call, std::vector<Named> arrays);

    /// A range around those bounds in which nothing is written; empty if there is none.
    Bounds free_range_around(const Bounds& bounds) const;

    /// ValueError if an array that is only read shares memory with a written one.
    void check_disjoint_from(const std::string& call, std::vector<Named> read) const;

    /// For Python's collector of cycles.
    int traverse(visitproc visit, void* arg) const;

  private:
    std::vector<Named> arrays_;
    std::vector<Bounds> covered_;  // what they cover, as disjoint ranges
};

}  // namespace schuss::bindings
