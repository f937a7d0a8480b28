// What the matrix products multiply, as types.
#pragma once

namespace sale::ptx {

struct Bf16 {};
struct F16 {};
struct E4m3 {};
struct S8 {};
struct S4 {};  // two a byte, the first one low

}  // namespace sale::ptx
