"""Pictures and numbers of what a network does, one command each: ``python -m analyze.erf --model vmamba_tiny_s1l8``.

erf (effective receptive field), attention (mixing matrices of the scans), activation (Grad-CAM), throughput, flops,
curves, scaling, probe, and report, which runs them all for a checkpoint.
"""
