// Memory for copies of array elements, reused from one piece of work to the next.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

#include "engine/copy.hpp"

namespace schuss::engine {

class Scratch {
  public:
    /// Makes room for this many bytes. What was in the scratch may be lost.
    void reserve(std::size_t bytes) {
        if (bytes <= size_) return;
        bytes_.reset(static_cast<std::byte*>(::operator new(bytes, alignment)));
        size_ = bytes;
    }
    std::byte* data() { return bytes_.get(); }

  private:
    static constexpr std::align_val_t alignment{cache_line};
    struct Delete {
        void operator()(std::byte* bytes) const { ::operator delete(bytes, alignment); }
    };
    std::unique_ptr<std::byte, Delete> bytes_;
    std::size_t size_ = 0;
};

}  // namespace schuss::engine
