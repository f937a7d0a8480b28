// Public structs grow: each begins with the size its caller's header gave it.
#pragma once

#include <cstddef>
#include <cstring>

#include "core/status.hpp"
#include "sale/sale.h"

namespace sale {

// Size of the first version of a struct; fields that came later count as 0 in one that lacks them.
template <class T>
inline constexpr size_t first_size = sizeof(T);
template <>
inline constexpr size_t first_size<sale_problem> = offsetof(sale_problem, k_coded);
template <>
inline constexpr size_t first_size<sale_call> = offsetof(sale_call, index_pages);
template <>
inline constexpr size_t first_size<sale_index_pages> = offsetof(sale_index_pages, coded);

template <class T>
void check_size(const T* at, const char* name) {
  require(at != nullptr, name, ": null");
  if (at->struct_size > sizeof(T))
    fail(SALE_INVALID_ARGUMENT, name, ".struct_size: ", at->struct_size, " is above this library's ", sizeof(T),
         "; it may ask for what this version does not know");
  require(at->struct_size >= first_size<T>, name, ".struct_size: ", at->struct_size, " is below ", first_size<T>,
          ", the first version's");
  require(at->struct_size % alignof(T) == 0, name, ".struct_size: ", at->struct_size,
          " is no version's: not a multiple of ", alignof(T));
}

// The caller's struct as this library's header has it.
template <class T>
T sized(const T* from, const char* name) {
  check_size(from, name);
  T whole{};
  std::memcpy(static_cast<void*>(&whole), from, from->struct_size);
  whole.struct_size = sizeof(T);
  return whole;
}

// The other way: as much of `what` as the caller's struct has room for.
template <class T>
void fill(T* to, const char* name, const T& what) {
  check_size(to, name);
  const size_t size = to->struct_size;
  std::memcpy(static_cast<void*>(to), &what, size);
  to->struct_size = size;
}

}  // namespace sale
