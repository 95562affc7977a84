"""FLOPs of a function, counted in its jaxpr: two for each multiply-add of its matrix products and convolutions.

XLA's own cost_analysis counts the body of a scan once however long the scan is, and cannot see into fused attention.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params


def flops(f: Callable[..., Any], *args: Any) -> int:
    """FLOPs of f(*args), which may be jax.ShapeDtypeStructs; recomputation under remat counts like any other work.

    A convolution counts the taps on padding, as papers do, but not those on the holes of a dilated input: so each
    gradient of a "SAME" convolution costs what the convolution does. The largest branch of a cond counts. Raises
    ValueError for a loop whose number of rounds only the device knows, and for kernels that cannot be looked into.
    """
    return _of_jaxpr(jax.make_jaxpr(f)(*args).jaxpr)


def _of_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> int:
    inner = [_of_jaxpr(jaxpr) for jaxpr in jaxprs_in_params(equation.params)]
    match equation.primitive.name:
        case "dot_general":
            return _of_dot(equation)
        case "conv_general_dilated":
            return _of_convolution(equation)
        case "scan":
            return equation.params["length"] * sum(inner)
        case "cond":
            return max(inner)
        case "dot_product_attention_fwd_wrapper":  # cuDNN's: q k^T and its product with v
            return _of_attention(equation, products=2)
        case "dot_product_attention_bwd_wrapper":  # q k^T again, and the gradients of q, k, v and the weights
            return _of_attention(equation, products=5)
        case "while" if any(inner):
            raise ValueError("cannot count the FLOPs of a while loop: only the device knows its number of rounds.")
        case "pallas_call" | "ffi_call" as name:
            raise ValueError(f"cannot count the FLOPs of {name}: add its formula to evaluation/plan/flops.py.")
    return sum(inner)


def _of_dot(equation: JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * depth * equation.outvars[0].aval.size


def _of_convolution(equation: JaxprEqn) -> int:
    options, kernel, out = equation.params, equation.invars[1].aval.shape, equation.outvars[0].aval.shape
    numbers = options["dimension_numbers"]
    (_, depth_axis, *kernel_axes), (batch_axis, channel_axis, *out_axes) = numbers.rhs_spec, numbers.out_spec
    windows = zip(
        [out[axis] for axis in out_axes], [kernel[axis] for axis in kernel_axes],
        options["window_strides"], options["rhs_dilation"], options["lhs_dilation"], options["padding"], strict=True,
    )  # fmt: skip
    taps = math.prod(_taps(*window) for window in windows)
    return 2 * taps * kernel[depth_axis] * out[batch_axis] * out[channel_axis]


def _taps(n_out: int, n_kernel: int, stride: int, dilation: int, input_dilation: int, padding: tuple[int, int]) -> int:
    """Pairs of an output and a kernel element, along one axis, that meet no hole of the input."""
    positions = stride * np.arange(n_out)[:, None] + dilation * np.arange(n_kernel) - padding[0]
    return int(np.count_nonzero(positions % input_dilation == 0))


def _of_attention(equation: JaxprEqn, products: int) -> int:
    query, key = (variable.aval for variable in equation.invars[:2])  # (b, n, heads, d), the layout of jax.nn
    return 2 * products * query.size * key.shape[1]
