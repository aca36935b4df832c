"""Ordinary school algebra decided exactly on the host, in front of Math-Verify.

trees    what a text means, as plain values
syntax   LaTeX to a tree, in Math-Verify's reading, or Unsupported
normal   a tree to an exact normal form: quotients of polynomials over Q and a few kernels
floats   a tree to floating-point numbers at fixed real points
decide   two texts to True, False, or None where only Math-Verify should say
"""
