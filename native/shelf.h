// Memory for one solve after another.
#pragma once

#include <cstring>
#include <new>
#include <vector>

#include "dense.h"

namespace optctl::OPTCTL_ISA {

// Pieces of memory that a thread gave back, kept for its next solve of the same size: the first touch of a fresh page
// costs as much as a thousand products.
class Shelf {
 public:
  static Shelf& mine() {
    thread_local Shelf shelf;
    return shelf;
  }

  void* take(size_t size) {
    for (size_t i = pieces_.size(); i-- > 0;)
      if (pieces_[i].size == size) {
        void* const memory = pieces_[i].memory;
        pieces_.erase(pieces_.begin() + i);
        held_ -= size;
        return memory;
      }
    return ::operator new(size);
  }

  void give(void* memory, size_t size) {
    if (size > most) return ::operator delete(memory);
    pieces_.push_back({memory, size});
    held_ += size;
    for (; held_ > most || pieces_.size() > longest; pieces_.erase(pieces_.begin())) {
      held_ -= pieces_.front().size;
      ::operator delete(pieces_.front().memory);
    }
  }

  ~Shelf() {
    for (const Piece& piece : pieces_) ::operator delete(piece.memory);
  }

 private:
  static constexpr size_t most = size_t{1} << 25, longest = 16;  // bytes, pieces
  struct Piece {
    void* memory;
    size_t size;
  };
  std::vector<Piece> pieces_;
  size_t held_ = 0;
};

// A workspace of numbers from the shelf.
class Room {
 public:
  explicit Room(size_t count) : size_((count + 8) * sizeof(double)), memory_(Shelf::mine().take(size_)) {
    std::memset(memory_, 0, size_);
    const auto address = reinterpret_cast<std::uintptr_t>(memory_);
    next_ = static_cast<double*>(memory_) + (64 - address % 64) % 64 / sizeof(double);
  }
  ~Room() { Shelf::mine().give(memory_, size_); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  // Room for `count` numbers, zero, on a cache line of its own.
  double* take(size_t count) {
    double* const piece = next_;
    next_ += Workspace<double>::padded(count);
    return piece;
  }

 private:
  const size_t size_;
  void* const memory_;
  double* next_;
};

}  // namespace optctl::OPTCTL_ISA
