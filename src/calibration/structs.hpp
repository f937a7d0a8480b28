// Public structs as they come and go, whichever header the caller was compiled with: an older one's are shorter.
#pragma once

#include <algorithm>
#include <cstring>

#include "core/status.hpp"

namespace sale::calibration {

// How much of the caller's struct is there.
template <class T>
size_t size_of(const T* from, const char* name) {
  require(from != nullptr, name, ": null");
  require(from->struct_size >= sizeof(size_t) && from->struct_size <= sizeof(T), name,
          ".struct_size: ", from->struct_size, "; this library knows ", sizeof(size_t), " .. ", sizeof(T),
          ". A larger one is of a newer header than the library");
  return from->struct_size;
}

// With zeros for what it lacks.
template <class T>
T taken(const T* from, const char* name) {
  T all{};
  std::memcpy(&all, from, size_of(from, name));
  all.struct_size = sizeof(T);
  return all;
}

// As much of `all` as the caller has room for.
template <class T>
void give(T all, T* to, const char* name) {
  all.struct_size = size_of(to, name);
  std::memcpy(to, &all, all.struct_size);
}

// Room for an answer by pointer.
template <class T>
void check_out(T* to, const char* name) {
  require(to != nullptr, name, ": null");
}

}  // namespace sale::calibration
