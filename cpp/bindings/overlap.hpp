// Whether arrays share memory.
#pragma once

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "bindings/array_view.hpp"

namespace schuss::bindings {

/// The addresses from the first to past the last byte of an array.
struct AddressRange {
    std::size_t begin, end;

    bool is_empty() const { return begin >= end; }
};

AddressRange bounds_of(const ArrayView& array);

/// Whether the strides alone prove that no two elements overlap: in ascending order, each stride
/// is at least the extent of the axes before it.
bool strides_prove_disjoint(const ArrayView& array);

/// Whether two elements of the array share memory, or bounded work cannot exclude it.
bool elements_overlap(const ArrayView& array);

/// An array and its name in messages.
struct NamedArray {
    ArrayView array;
    std::string argument;
    bool written = true;  // whether the call writes it
};

/// ValueError if one of the arrays shares memory with another that is written.
///
/// Arrays are disjoint if their bounds are. The bounds of interleaved arrays overlap: columns of
/// one matrix, every other row, fields of records. Sorting their addresses modulo one of their
/// strides separates them. Only arrays that this does not separate are compared in pairs.
void check_disjoint(const std::string& call, const std::vector<NamedArray>& arrays);

/// The arrays that a call writes. No two of them share memory.
class WriteSet {
  public:
    WriteSet() = default;

    /// ValueError if two of the arrays share memory.
    WriteSet(const std::string& call, std::vector<NamedArray> arrays);

    /// Changes the name of an array in messages.
    void rename(std::size_t array, std::string argument) {
        arrays_[array].argument = std::move(argument);
    }

    /// A range around the bounds that contains no written memory; empty if there is none.
    AddressRange free_range_around(const AddressRange& bounds) const;

    /// ValueError if an array that is only read shares memory with a written one.
    void check_disjoint_from(const std::string& call, std::vector<NamedArray> read) const;

    /// For Python's cycle collector.
    int traverse(visitproc visit, void* arg) const;

  private:
    std::vector<NamedArray> arrays_;
    std::vector<AddressRange> covered_;  // the memory between their bounds, as disjoint ranges
};

}  // namespace schuss::bindings
