// Functions that rules need besides operators. They call the C library directly: std::sqrt has
// inline overloads, which an unoptimised build would export from a file compiled for AVX.
#pragma once

struct Arithmetic {
    static float root(float x) { return ::sqrtf(x); }
    static double root(double x) { return ::sqrt(x); }
};

template <typename T>
T square_root(T x) {
    return Arithmetic::root(x);
}
