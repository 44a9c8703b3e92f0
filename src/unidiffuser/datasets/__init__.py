"""Where raw pairs come from: one file (or package) per data format.

A dataset is any object with `__len__` and `__getitem__(i) -> {modality name: raw value}`, in any order. It knows
nothing of tensors, codecs or training.
"""
