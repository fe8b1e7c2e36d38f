"""Weights that depend on nothing but a tensor's name and shape.

Two programs that hold the same network under the same names can fill it by this rule and must then compute the same
numbers; no weight file has to exist. One RandomState a tensor, seeded with the CRC-32 of its name.
"""
import zlib

import numpy as np
import torch
import torch.nn.functional as F


def fill_value(name, shape):
    "The float32 tensor that belongs to `name`; counters are zero, gammas one half"
    rng, leaf = np.random.RandomState(zlib.crc32(name.encode())), name.split('.')[-1]
    if leaf == 'num_batches_tracked': return torch.zeros(shape, dtype=torch.long)
    if leaf.startswith('gamma'): a = np.full(shape, .5)
    elif leaf in ('bias', 'running_mean'): a = .1*rng.standard_normal(shape)
    elif leaf == 'running_var' or len(shape) == 1: a = .5 + rng.uniform(size=shape)
    else: a = rng.standard_normal(shape)/np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(a, dtype=np.float32))


def fill(state):
    "A copy of `state` in which all but the fixed kernels and the idle Gaussian follow `fill_value`"
    return {k: v.clone() if k.endswith('.kernel') or k == 'blur.weight' else fill_value(k, tuple(v.shape)) for k, v in state.items()}


def smooth_images(n=2, size=256, seed=0):
    "`n` pictures in [-1, 1]: a coarse random pattern with a little fine noise"
    rng = np.random.RandomState(seed)
    coarse, fine = (torch.from_numpy(rng.uniform(-1, 1, (n, 3, s, s)).astype(np.float32)) for s in (16, size))
    return (.8*F.interpolate(coarse, size=size, mode='bilinear', align_corners=False) + .2*fine).clamp(-1, 1)
