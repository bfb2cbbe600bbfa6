"""The operators that a saved model may have: those that compute tensors of tensors and nothing
else, by the names that files have for them.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

from dnnsep.graph import ops

Operator = Callable[..., Any]

_OWN: dict[str, Operator] = {
    "convolution": ops.convolution,
    "activation": ops.activation,
    "getitem": operator.getitem,
}

# Of each the overloads that write into none of their arguments. Left out is what reads files, what
# gives numbers rather than tensors, and what does not check its indices: as_strided does, but not
# without data, and kernels work on the memory that a view says.
_TEXT = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _log_softmax _native_batch_norm_legit_no_training _softmax
_to_copy _unsafe_view abs acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
adaptive_max_pool1d adaptive_max_pool2d add addbmm addcdiv addcmul addmm addmv affine_grid_generator
alias all amax amin any arange argmax argmin argsort asin asinh atan atan2 atanh avg_pool1d
avg_pool2d avg_pool3d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bitwise_xor bmm
bucketize cat ceil celu channel_shuffle chunk clamp clamp_max clamp_min clone col2im concat
constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
convolution copysign cos cosh cross cumprod cumsum deg2rad detach diag diag_embed diagonal diff div
divide dot dropout einsum elu embedding eq erf erfc exp exp2 expand expand_as expm1 eye flatten flip
fliplr flipud floor floor_divide fmax fmin fmod frac full full_like gather ge gelu glu grid_sampler
grid_sampler_2d grid_sampler_3d group_norm gru gt hardshrink hardsigmoid hardswish hardtanh hypot
im2col index index_add index_copy index_fill index_put index_select instance_norm isfinite isinf
isnan kthvalue layer_norm le leaky_relu lerp lift_fresh_copy linalg_vector_norm linear linspace log
log10 log1p log2 log_sigmoid log_softmax logaddexp logical_and logical_not logical_or logical_xor
logsumexp lstm lt mT masked_fill masked_scatter matmul max max_pool1d max_pool2d
max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum mean median meshgrid min minimum
mish mm moveaxis movedim mul multiply mv nan_to_num narrow native_dropout native_group_norm
native_layer_norm ne neg new_empty new_full new_ones new_zeros norm one_hot ones ones_like outer pad
permute pixel_shuffle pixel_unshuffle polar pow prelu prod rad2deg rand rand_like randn randn_like
reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6 remainder repeat
repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape rms_norm roll rot90
round rrelu rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce
searchsorted select select_scatter selu sigmoid sign silu sin sinc sinh slice slice_scatter softmax
softplus softshrink sort special_logit split split_with_sizes sqrt square squeeze stack std std_mean
sub subtract sum swapaxes swapdims t take_along_dim tan tanh tensor_split threshold tile to topk
transpose tril triu true_divide trunc type_as unbind unflatten unfold unsqueeze upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_trilinear3d var var_mean view view_as where xlogy zeros zeros_like
"""
_ATEN = frozenset(_TEXT.split())


def name_of(target: Any) -> str:
    """Returns what files call an operator. Raises ValueError if they may not have it."""
    own = next((name for name, operator in _OWN.items() if operator is target), None)
    name = own or str(target)  # aten.add.Tensor
    if _found(name) is not target:
        raise ValueError(f"operator {name}: cannot be saved")
    return name


def operator_of(name: str) -> Operator:
    """Returns the operator of a name. Raises ValueError if files may not have it."""
    found = _found(name)
    if found is None:
        raise ValueError(f"operator {name}: is not one that a saved model may have")
    return found


def _found(name: str) -> Operator | None:
    if name in _OWN:
        return _OWN[name]
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace != "aten" or packet not in _ATEN:
        return None
    found = getattr(getattr(torch.ops.aten, packet), overload, None)
    allowed = isinstance(found, OpOverload) and str(found) == name and not found._schema.is_mutable
    return found if allowed else None
