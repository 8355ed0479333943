// How averages fall while the gradients are zero.
#pragma once

struct Moments {
    /// The fall of an average over a divisor, which fall by these factors in each step. beta2: the
    /// decay rate of the divisor. If the divisor falls as fast as the average, beta2 becomes 0: the
    /// divisor is at its floor then, and the average alone falls.
    static Fall fall(double average, double divisor, double floor, double& beta2) {
        if (average < 0.9999 * divisor) return {.ratio = average / divisor, .floor = floor};
        beta2 = 0;
        return {.ratio = average, .floor = floor};
    }
};
