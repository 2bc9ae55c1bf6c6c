"""The hot loops: which kernel there is, its twin in plain torch, and by what it was measured to be faster.

    kernel            twin                         state
    log_loss          twins.log_loss_and_gradient  unmeasured
    accept            dpp.accept                   unmeasured
    linear            twins.layer                  unmeasured
    linear_step       twins.layer_step_            unmeasured
    descend recorded  passes.Steps                 unmeasured
    fit recorded      trainer.Trainer              unmeasured

The first four are Triton's (`triton_kernels`), launched by `fused`, which also says when; the last two are whole steps
recorded as CUDA graphs (`capture`). One that is unmeasured runs only where it is asked for, and its twin elsewhere.
A CPU has twins alone; `curvature` has their second derivatives, `small_images` and `chance` what they call.
"""
