"""A fully connected classifier in plain NumPy, which the demo trains.

Its parameters are a dict of ``W1``, ``b1``, ``W2``, ``b2``, ..., each W of shape (inputs, outputs);
examples lie in rows. It works in the parameters' dtype.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from schuss._arrays import Array

Parameters = dict[str, Array]


def initial_parameters(
    sizes: Sequence[int], rng: np.random.Generator, dtype: npt.DTypeLike = np.float32
) -> Parameters:
    """Draw the weights of a network from He's normal distribution; the biases are 0.

    Parameters
    ----------
    sizes : sequence of int
        The number of inputs, of units in each hidden layer, and of classes.
    rng : numpy.random.Generator
        The generator of the weights.
    dtype : float32 or float64
        The parameters' dtype.

    References
    ----------
    He, Zhang, Ren & Sun, "Delving deep into rectifiers", 2015, eq. 10.
    """
    params: Parameters = {}
    for layer, (inputs, outputs) in enumerate(pairwise(sizes), start=1):
        weights = rng.standard_normal((inputs, outputs)) * np.sqrt(2 / inputs)
        params[f"W{layer}"] = weights.astype(dtype)
        params[f"b{layer}"] = np.zeros(outputs, dtype)
    return params


def cost_and_gradients(
    params: Parameters, x: Array, labels: npt.NDArray[np.int64], *, l2: float = 0.0
) -> tuple[float, Parameters]:
    """Return the cost on a batch of b examples, and its gradients, by backpropagation.

    ``J = (1/b) sum(loss) + (l2/2b) sum(||W||^2)``. The loss is the cross-entropy of the softmax, in
    nats; the second sum is over the weights, without the biases.

    Parameters
    ----------
    params : dict of arrays
        The parameters, as `initial_parameters` draws them.
    x : array, shape (b, inputs)
        The examples.
    labels : array of int, shape (b,)
        Their classes, from 0.
    l2 : float
        Lambda, the strength of the L2 cost.

    Returns
    -------
    cost : float
        J, in nats per example.
    gradients : dict of arrays
        The gradients of J, in the structure of `params`.

    References
    ----------
    Goodfellow, Bengio & Courville, "Deep learning", 2016, algorithms 6.3 and 6.4.
    """
    *activations, logits = _forward(params, x)
    batch = len(x)
    truth = np.arange(batch), labels

    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probability = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    weights = [array for name, array in params.items() if name.startswith("W")]
    penalty = sum(float(np.vdot(w, w)) for w in weights)
    cost = (-float(log_probability[truth].sum()) + l2 / 2 * penalty) / batch

    delta = np.exp(log_probability)
    delta[truth] -= 1
    delta /= batch
    gradients: Parameters = {}
    for layer in range(len(activations), 0, -1):
        inputs, w = activations[layer - 1], params[f"W{layer}"]
        gradients[f"W{layer}"] = inputs.T @ delta + (l2 / batch) * w
        gradients[f"b{layer}"] = delta.sum(axis=0)
        if layer > 1:
            delta = (delta @ w.T) * (inputs > 0)
    return cost, gradients


def accuracy(params: Parameters, x: Array, labels: npt.NDArray[np.int64]) -> float:
    """Return the fraction of the examples that are classified correctly."""
    return float(np.mean(_forward(params, x)[-1].argmax(axis=1) == labels))


def _forward(params: Parameters, x: Array) -> list[Array]:
    """Return the inputs of every layer (rectified, except for the first), and the logits."""
    layers = len(params) // 2
    activations = [x]
    for layer in range(1, layers + 1):
        z = activations[-1] @ params[f"W{layer}"] + params[f"b{layer}"]
        activations.append(np.maximum(z, 0) if layer < layers else z)
    return activations
