// What a rule needs beyond the operators. The C library's functions, not std::sqrt: its overloads
// are inline functions, which an unoptimised build would export from an AVX file.
#pragma once

struct Arithmetic {
    static float root(float x) { return ::sqrtf(x); }
    static double root(double x) { return ::sqrt(x); }
};

template <typename T>
T square_root(T x) {
    return Arithmetic::root(x);
}
