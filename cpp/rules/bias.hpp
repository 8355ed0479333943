// The bias of averages that begin with zero.
#pragma once

struct Bias {
    /// 1 - beta**t, the sum of the weights in an average of t steps. Where beta**t, which is at
    /// most exp(-t * (1 - beta)), is less than 2^-54, the difference rounds to 1. The power is not
    /// computed then: powers that underflow take long.
    static double correction(double beta, double t) {
        return t * (1 - beta) > 38 ? 1 : 1 - ::pow(beta, t);
    }
};
